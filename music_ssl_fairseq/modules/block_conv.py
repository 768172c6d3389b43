"""Grouped convolution over time as a few large matrix products.

cuDNN runs the positional convolution (768 channels in 16 groups, kernel 128) on a slow path in half
precision: 20 ms forward for 100 crops of 5 s on an H200, of which its arithmetic is half a
millisecond. Written out for blocks of output frames, it is one dense product for each group: the
block's `block + kernel - 1` input frames times a matrix that holds the kernel once for each output
frame, shifted by one (a Toeplitz matrix). That has 12 % more arithmetic and runs at full speed.
"""

from torch import Tensor
from torch.nn import functional as F

BLOCK = 16
"""Output frames a block: larger ones cost more arithmetic, smaller ones copy the input more."""


def block_conv(x: Tensor, weight: Tensor, bias: Tensor, groups: int) -> Tensor:
    """`conv1d(x, weight, bias, padding=kernel // 2, groups=groups)[:T]` for frames-last-but-one.

    Args:
        x: `[B, T, D]`.
        weight: `[D, D // groups, kernel]`.
        bias: `[D]`.

    Returns:
        `[B, T, D]`.
    """
    batch, frames, dim = x.shape
    width, kernel = weight.shape[1:]
    blocks = -(-frames // BLOCK)
    window = BLOCK + kernel - 1
    before = kernel // 2
    after = blocks * BLOCK - frames + kernel - 1 - before
    inputs = (
        F.pad(x, (0, 0, before, after))
        .unfold(1, window, BLOCK)  # [B, blocks, D, window]
        .unflatten(2, (groups, width))
        .permute(2, 0, 1, 4, 3)
        .reshape(groups, batch * blocks, window * width)
    )
    shifted = (
        F.pad(weight, (BLOCK - 1, BLOCK - 1))
        .unfold(-1, BLOCK, 1)  # [D, width, window, BLOCK]: the last axis runs backwards
        .flip(-1)
        .unflatten(0, (groups, width))
        .permute(0, 3, 2, 4, 1)
        .reshape(groups, window * width, BLOCK * width)
    )
    outputs = (
        (inputs @ shifted)
        .view(groups, batch, blocks, BLOCK, width)
        .permute(1, 2, 3, 0, 4)
        .reshape(batch, blocks * BLOCK, dim)
    )
    return outputs[:, :frames] + bias
