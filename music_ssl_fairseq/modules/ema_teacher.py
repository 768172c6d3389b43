"""The teacher of music2vec: an exponential moving average of the student's encoder."""

import copy

import torch
from torch import Tensor, nn


def annealed_decay(start: float, end: float, update: int, anneal_updates: int) -> float:
    """Return the decay at `update`: linear from `start` to `end`, then constant (data2vec, 3.2)."""
    if update >= anneal_updates:
        return end
    return start + (end - start) * update / anneal_updates


class EMATeacher:
    """A copy of a student that follows it slowly, in fp32.

    Not an nn.Module, so that its weights are neither trained nor counted as parameters.

    Args:
        student: the module to follow.
        copied: prefix of parameters that are copied at each step instead of averaged
            (`ema_layers_only`: the positional convolution), or "" for none.
    """

    def __init__(self, student: nn.Module, copied: str):
        self.model = copy.deepcopy(student).float().eval().requires_grad_(False)
        self.copied = copied

    @torch.no_grad()
    def step(self, student: nn.Module, decay: float) -> None:
        """Move each weight by `1 - decay` of its distance to the student's."""
        averaged: list[Tensor] = []
        targets: list[Tensor] = []
        ours = dict(self.model.named_parameters())
        for name, theirs in student.named_parameters():
            if self.copied and name.startswith(self.copied):
                ours[name].copy_(theirs)
            else:
                averaged.append(ours[name])
                targets.append(theirs.float())
        torch._foreach_lerp_(averaged, targets, 1.0 - decay)
