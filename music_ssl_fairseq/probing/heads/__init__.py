"""The grid of heads: one head per layer and learning rate, trained together."""
