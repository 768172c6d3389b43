"""Frames whose last-layer output is used."""

from typing import NamedTuple

import torch
from torch import Tensor


class FrameSelection(NamedTuple):
    """The N frames of a batch `[B, T]` whose last-layer output is used.

    A loss over masked frames needs the others only as keys and values of the last layer's
    attention. Without them, at `mask_prob` 0.8, a third of that layer's work is saved.
    """

    masked_indices: Tensor  # `[N]` int32, ascending indices into `B * T`
    starts: Tensor  # `[B + 1]` int32, where each crop's frames begin among them, and N


def select(masked_indices: Tensor, batch: int, frames: int) -> FrameSelection:
    """Select frames by ascending indices `[N]` into `batch * frames`."""
    begins = torch.arange(0, batch * frames + 1, frames, device=masked_indices.device)
    starts = torch.searchsorted(masked_indices, begins.to(masked_indices.dtype), out_int32=True)
    return FrameSelection(masked_indices.to(torch.int32), starts)
