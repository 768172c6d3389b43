"""Frequency bands on the extractor's frames: further inputs of an encoder, and targets."""
