"""Views of crops, and their visible frames, so that the Transformer computes nothing else.

A view is a crop under one of its masks. The views of a crop follow each other. Selecting frames and
putting them back are both gathers here, forward and backward.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor


class Packing(NamedTuple):
    """Places of the K visible frames of each view among its F frames."""

    # `[views, K]` int64, the visible frames as ascending indices into `views * F`; -1 where a
    # view has fewer than K
    frames: Tensor
    # `[views, F]` int64, each frame's index into `views * K`; -1 if it is not visible
    places: Tensor


def packing_of(visible: Tensor, number: int) -> Packing:
    """Pack the True frames of `[views, F]`, at most `number` per view."""
    views, frames = visible.shape
    row = torch.arange(views, device=visible.device).unsqueeze(1)
    place = torch.where(visible, visible.cumsum(1) - 1, number)
    packed = place.new_full((views, number + 1), -1)  # frames that are not visible go to the last
    packed.scatter_(1, place, row * frames + torch.arange(frames, device=visible.device))
    return Packing(packed[:, :number], torch.where(visible, row * number + place, -1))


def pack(x: Tensor, packing: Packing) -> Tensor:
    """Map frames `[views, F, D]` to visible ones, `[views, K, D]`, zeros beyond their number."""
    return _rows(x, packing.frames, packing.places)


def unpack(x: Tensor, packing: Packing) -> Tensor:
    """Map `[views, K, D]` back to `[views, F, D]`, zeros where a frame is not visible."""
    return _rows(x, packing.places, packing.frames)


def take(x: Tensor, indices: Tensor) -> Tensor:
    """Select `[N, D]` of `[views, F, D]` by different indices into `views * F`."""
    back = indices.new_full((x.size(0) * x.size(1),), -1)
    back.scatter_(0, indices, torch.arange(len(indices), device=indices.device))
    return _rows(x, indices, back.view(x.shape[:2]))


def repeat_crops(x: Tensor, views: int) -> Tensor:
    """Repeat crops `[B, ...]` for the views of each: `[views, ...]`."""
    copies = views // len(x)
    return x if copies == 1 else x.unsqueeze(1).expand(-1, copies, *x.shape[1:]).flatten(0, 1)


def _rows(x: Tensor, indices: Tensor, back: Tensor) -> Tensor:
    return _Rows.apply(x.flatten(0, 1), indices.flatten(), back.flatten()).view(*indices.shape, -1)


class _Rows(torch.autograd.Function):
    """Select rows by index, zeros for -1. No row is taken twice, so the gradient selects as well.

    torch's own gradients would add rows up, one by one.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, indices: Tensor, back: Tensor) -> Tensor:
        ctx.save_for_backward(indices, back)
        return _select(x, indices)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        return _select(grad, ctx.saved_tensors[1]), None, None


def _select(x: Tensor, indices: Tensor) -> Tensor:
    return torch.where((indices >= 0).unsqueeze(1), x[indices.clamp(min=0)], 0)


def indices_in_crops(indices: Tensor, mask: Tensor, crops: int) -> Tensor:
    """Map `[N]` indices into `views * F` of a mask `[views, F]` to indices into `crops * F`."""
    views, frames = mask.shape
    if views == crops:
        return indices
    of_crop = mask.numel() // crops
    return indices // of_crop * frames + indices % frames
