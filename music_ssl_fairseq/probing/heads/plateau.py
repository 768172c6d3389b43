"""Reduce-on-plateau and early stopping, separately for each head of the grid."""

import torch
from torch import Tensor, nn


class HeadSchedule(nn.Module):
    """Best scores and learning rates; each tensor is `[heads of the grid]`."""

    learning_rate: Tensor  # the present one
    best_score: Tensor  # highest validation score so far; minus infinity before the first
    best_epoch: Tensor
    epochs: Tensor  # trained
    since_best: Tensor  # validations since the best score
    since_reduction: Tensor  # validations since the best score or the last reduction of the rate

    def __init__(self, rates: list[float], patience: int, lr_patience: int, lr_factor: float):
        """Begin with the heads' initial rates; the other arguments are `HeadGridConfig`'s."""
        super().__init__()
        self.patience = patience
        self.lr_patience = lr_patience
        self.lr_factor = lr_factor
        count = len(rates)
        self.register_buffer("learning_rate", torch.tensor(rates, dtype=torch.float64))
        self.register_buffer("best_score", torch.full((count,), -torch.inf, dtype=torch.float64))
        for name in ("best_epoch", "epochs", "since_best", "since_reduction"):
            self.register_buffer(name, torch.zeros(count, dtype=torch.int64))

    def update(self, heads: Tensor, scores: Tensor, epoch: int) -> tuple[Tensor, Tensor]:
        """Note the scores of a validation; return which heads improved, and which have stopped.

        Args:
            heads: `[n]` int64, their numbers in the grid.
            scores: `[n]` float64, higher is better. NaN counts as no better.

        Returns:
            `[n]` bool each.
        """
        heads = heads.to(self.best_score.device)
        scores = scores.to(self.best_score)
        improved = scores > self.best_score[heads]
        self.epochs[heads] = epoch
        self.best_score[heads] = torch.where(improved, scores, self.best_score[heads])
        self.best_epoch[heads] = torch.where(improved, epoch, self.best_epoch[heads])
        for counter in (self.since_best, self.since_reduction):
            counter[heads] = torch.where(improved, 0, counter[heads] + 1)
        reduced = self.since_reduction[heads] >= self.lr_patience
        rate = self.learning_rate[heads]
        self.learning_rate[heads] = torch.where(reduced, rate * self.lr_factor, rate)
        self.since_reduction[heads] = torch.where(reduced, 0, self.since_reduction[heads])
        return improved, self.since_best[heads] >= self.patience
