"""Some of a batch's frames, where only these are wanted.

A loss over masked frames needs nothing of the others from the last layer, except as keys and values
of its attention: at `mask_prob` 0.8 that leaves out a third of the layer.
"""

from typing import NamedTuple

import torch
from torch import Tensor


class ChosenFrames(NamedTuple):
    """Frames of a batch `[B, T]`.

    Attributes:
        rows: `[N]` int32, ascending indices into `B * T`.
        starts: `[B + 1]` int32, where each crop's begin among them, and their number.
    """

    rows: Tensor
    starts: Tensor


def choose(indices: Tensor, batch: int, frames: int) -> ChosenFrames:
    """`ChosenFrames` of ascending `indices` `[N]` into `batch * frames`."""
    begins = torch.arange(0, batch * frames + 1, frames, device=indices.device)
    starts = torch.searchsorted(indices, begins.to(indices.dtype), out_int32=True)
    return ChosenFrames(indices.to(torch.int32), starts)
