"""Grouped convolution over time as a few large matrix products.

cuDNN runs the positional convolution (768 channels in 16 groups, kernel 128) on a slow path in half
precision: 20 ms forward for 100 crops of 5 s on an H200, although its arithmetic takes half a
millisecond. For a block of output frames it is one dense product per group: the block's
`block + kernel - 1` input frames times a matrix that holds the kernel once per output frame, each
time shifted by one (a Toeplitz matrix). This has 12 % more arithmetic and runs at full speed.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

BLOCK = 16
"""Output frames per block: larger blocks have more arithmetic, smaller ones more copies."""


def block_conv(x: Tensor, weight: Tensor, bias: Tensor, groups: int) -> Tensor:
    """Compute `conv1d(x, weight, bias, padding=kernel // 2, groups=groups)[:T]`, channels last.

    From `[B, T, D]`, weight `[D', D // groups, kernel]` and bias `[D']` to `[B, T, D']`.
    """
    return _BlockConv.apply(x, weight, groups) + bias


class _BlockConv(torch.autograd.Function):
    """Computes gradients as such products too; autograd's own would scatter through the views."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, groups: int) -> Tensor:
        kernel = weight.size(-1)
        inputs = _windows(x, groups, kernel, kernel // 2)
        ctx.save_for_backward(inputs, weight)
        ctx.groups = groups
        return _correlate(inputs, weight, x.shape[:2])

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        inputs, weight = ctx.saved_tensors
        groups = ctx.groups
        kernel = weight.size(-1)
        # The input's gradient is a convolution with reversed taps, from outputs to inputs.
        mirrored = weight.unflatten(0, (groups, -1)).transpose(1, 2).flatten(0, 1).flip(-1)
        outputs = _windows(grad, groups, kernel, kernel - 1 - kernel // 2)
        d_x = _correlate(outputs, mirrored, grad.shape[:2])
        return d_x, _weight_gradient(inputs, grad, kernel), None


def _windows(x: Tensor, groups: int, kernel: int, before: int) -> Tensor:
    """Return each block's input frames: `[groups, B * blocks, (BLOCK + kernel - 1) * width]`."""
    blocks = -(-x.size(1) // BLOCK)
    after = blocks * BLOCK - x.size(1) + kernel - 1 - before
    return (
        F.pad(x, (0, 0, before, after))
        .unfold(1, BLOCK + kernel - 1, BLOCK)  # [B, blocks, D, window]
        .unflatten(2, (groups, -1))
        .permute(2, 0, 1, 4, 3)
        .reshape(groups, x.size(0) * blocks, -1)
    )


def _correlate(inputs: Tensor, weight: Tensor, shape: Sequence[int]) -> Tensor:
    """Sum `weight[k] @ x[t + k - before]` over taps k, for each frame t of a result of `shape`.

    `inputs` are the `_windows` of `x`; `shape` is `[B, T]`.
    """
    batch, frames = shape
    groups = inputs.size(0)
    dim = len(weight)
    width = dim // groups
    shifted = (
        F.pad(weight, (BLOCK - 1, BLOCK - 1))
        .unfold(-1, BLOCK, 1)  # [D, width in, window, BLOCK]: the last axis runs backwards
        .flip(-1)
        .unflatten(0, (groups, width))
        .permute(0, 3, 2, 4, 1)
        .reshape(groups, -1, BLOCK * width)
    )
    return (
        torch.bmm(inputs, shifted)
        .view(groups, batch, -1, BLOCK, width)
        .permute(1, 2, 3, 0, 4)
        .reshape(batch, -1, dim)[:, :frames]
    )


def _weight_gradient(inputs: Tensor, grad: Tensor, kernel: int) -> Tensor:
    """Sum the Toeplitz matrix's gradient along the diagonals that hold the same weight."""
    batch, frames, dim = grad.shape
    groups = inputs.size(0)
    width = dim // groups  # of the outputs
    width_in = inputs.size(2) // (BLOCK + kernel - 1)
    blocks = -(-frames // BLOCK)
    outputs = (
        F.pad(grad, (0, 0, 0, blocks * BLOCK - frames))
        .view(batch, blocks, BLOCK, groups, width)
        .permute(3, 0, 1, 2, 4)
        .reshape(groups, batch * blocks, BLOCK * width)
    )
    product = torch.bmm(inputs.transpose(1, 2), outputs)
    # [groups, window, width in, BLOCK, width out]; output frame r of a block meets tap k at input
    # frame k + r: one step in k is one in the window, one in r is one in both.
    row, column = BLOCK * width_in * width, width
    diagonals = product.as_strided(
        (groups, kernel, width_in, BLOCK, width),
        ((BLOCK + kernel - 1) * row, row, BLOCK * width, row + column, 1),
    )
    wide = torch.promote_types(product.dtype, torch.float32)
    taps = diagonals.sum(3, dtype=wide)  # [groups, kernel, width in, width out]
    return taps.permute(0, 3, 2, 1).reshape(dim, width_in, kernel).to(grad.dtype)
