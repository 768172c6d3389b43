"""Relative positions by convolution (wav2vec 2.0, section 2; data2vec, section 4.2)."""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class _WeightNormConv(nn.Module):
    """Grouped convolution whose weight is `g * v / |v|`, the norm taken for each tap.

    `weight_g` and `weight_v` are the names that fairseq's `weight_norm(dim=2)` gives them, in
    checkpoints of every age.
    """

    def __init__(self, dim: int, kernel: int, groups: int):
        super().__init__()
        self.groups = groups
        self.kernel = kernel
        weight = torch.empty(dim, dim // groups, kernel)
        nn.init.normal_(weight, std=math.sqrt(4.0 / (kernel * dim)))
        self.weight_g = nn.Parameter(weight.norm(dim=(0, 1), keepdim=True))
        self.weight_v = nn.Parameter(weight)
        self.bias = nn.Parameter(torch.zeros(dim))

    def forward(self, x: Tensor) -> Tensor:
        """`[B, D, T]` to `[B, D, T]`."""
        norm = self.weight_v.norm(dim=(0, 1), keepdim=True)
        weight = self.weight_v * (self.weight_g / norm)
        y = F.conv1d(x, weight, self.bias, padding=self.kernel // 2, groups=self.groups)
        return y[..., : x.size(-1)]


class _ConvBlock(nn.Module):
    """One of data2vec's stacked convolutions: convolve, normalise without parameters, GELU."""

    def __init__(self, dim: int, kernel: int, groups: int):
        super().__init__()
        self.kernel = kernel
        # "0": the convolution's position in fairseq's nn.Sequential.
        self.add_module("0", nn.Conv1d(dim, dim, kernel, padding=kernel // 2, groups=groups))

    def forward(self, x: Tensor) -> Tensor:
        """`[B, D, T]` to `[B, D, T]`."""
        y = self.get_submodule("0")(x)[..., : x.size(-1)]
        y = F.layer_norm(y.transpose(1, 2).float(), (y.size(1),)).transpose(1, 2)
        return F.gelu(y.to(x.dtype))


class PositionalConv(nn.Sequential):
    """What is added to the encoder's input, so that it knows the order of its frames.

    Args:
        dim: channels.
        kernel: frames that one convolution sees (HuBERT: 128), or, with `depth` > 1, that all of
            them see together (data2vec: 95 in 5 convolutions of 19).
        groups: of each convolution.
        depth: 1 for wav2vec 2.0's and HuBERT's single weight-normed convolution, more for
            data2vec's stack.
    """

    def __init__(self, dim: int, kernel: int, groups: int, depth: int):
        if depth > 1:
            width = max(3, kernel // depth)
            super().__init__(*[_ConvBlock(dim, width, groups) for _ in range(depth)])
        else:
            super().__init__(_WeightNormConv(dim, kernel, groups), nn.GELU())

    def forward(self, x: Tensor) -> Tensor:
        """`[B, T, D]` to `[B, T, D]`."""
        return super().forward(x.transpose(1, 2)).transpose(1, 2)
