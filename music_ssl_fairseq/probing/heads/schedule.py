"""Reduce-on-plateau and early stopping, for each row of a batched probe by itself."""

from typing import NamedTuple

import torch
from torch import Tensor, nn


class Verdict(NamedTuple):
    """What a validation means for the rows it was of, each `[rows]` bool."""

    improved: Tensor
    stopped: Tensor


class RowSchedule(nn.Module):
    """Keeps what each row of the grid has reached; all tensors are `[rows of the grid]`.

    Attributes:
        learning_rate: now.
        best_score: highest score on validation so far; minus infinity before the first.
        best_epoch: when that was.
        epochs: trained.
        since_best: validations since the best score, or since the last one that was better.
        since_reduction: the same, but counted from the last reduction of the rate.
    """

    learning_rate: Tensor
    best_score: Tensor
    best_epoch: Tensor
    epochs: Tensor
    since_best: Tensor
    since_reduction: Tensor

    def __init__(self, rates: list[float], patience: int, lr_patience: int, lr_factor: float):
        """
        Args:
            rates: learning rates to begin with, one a row.
            patience: validations without a better score after which a row stops.
            lr_patience: the same, after which its rate is reduced.
            lr_factor: by which it is multiplied then.
        """
        super().__init__()
        self.patience = patience
        self.lr_patience = lr_patience
        self.lr_factor = lr_factor
        count = len(rates)
        self.register_buffer("learning_rate", torch.tensor(rates, dtype=torch.float64))
        self.register_buffer("best_score", torch.full((count,), -torch.inf, dtype=torch.float64))
        for name in ("best_epoch", "epochs", "since_best", "since_reduction"):
            self.register_buffer(name, torch.zeros(count, dtype=torch.int64))

    def update(self, rows: Tensor, scores: Tensor, epoch: int) -> Verdict:
        """Take note of a validation.

        Args:
            rows: `[n]` int64, which rows of the grid the scores are of.
            scores: `[n]` float64, higher is better. One that is not a number is no better.
        """
        rows = rows.to(self.best_score.device)
        scores = scores.to(self.best_score)
        improved = scores > self.best_score[rows]
        self.epochs[rows] = epoch
        self.best_score[rows] = torch.where(improved, scores, self.best_score[rows])
        self.best_epoch[rows] = torch.where(improved, epoch, self.best_epoch[rows])
        for counter in (self.since_best, self.since_reduction):
            counter[rows] = torch.where(improved, 0, counter[rows] + 1)
        reduced = self.since_reduction[rows] >= self.lr_patience
        rate = self.learning_rate[rows]
        self.learning_rate[rows] = torch.where(reduced, rate * self.lr_factor, rate)
        self.since_reduction[rows] = torch.where(reduced, 0, self.since_reduction[rows])
        return Verdict(improved, self.since_best[rows] >= self.patience)
