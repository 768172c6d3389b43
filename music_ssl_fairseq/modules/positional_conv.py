"""Relative positions by convolution (wav2vec 2.0, section 2; data2vec, section 4.2)."""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from music_ssl_fairseq.fast.dispatch import PLAIN, Execution
from music_ssl_fairseq.modules.encoder_config import AudioEncoderConfig


def _convolve(x: Tensor, weight: Tensor, bias: Tensor, groups: int, execution: Execution) -> Tensor:
    """Convolve groups of channels over time, keeping the length: `[B, T, D]` to `[B, T, D']`."""
    if execution.is_fast(x):
        return execution.grouped_conv(x, weight, bias, groups)
    y = F.conv1d(x.transpose(1, 2), weight, bias, padding=weight.size(-1) // 2, groups=groups)
    return y[..., : x.size(1)].transpose(1, 2)


class _WeightNormConv(nn.Module):
    """Grouped convolution whose weight is `g * v / |v|`, with one norm per tap, and a GELU.

    fairseq's `weight_norm(dim=2)` calls the weights `weight_g` and `weight_v` in checkpoints.
    """

    def __init__(self, dim: int, kernel: int, groups: int):
        super().__init__()
        self.groups = groups
        weight = torch.empty(dim, dim // groups, kernel)
        nn.init.normal_(weight, std=math.sqrt(4.0 / (kernel * dim)))
        self.weight_g = nn.Parameter(weight.norm(dim=(0, 1), keepdim=True))
        self.weight_v = nn.Parameter(weight)
        self.bias = nn.Parameter(torch.zeros(dim))

    def forward(self, x: Tensor, execution: Execution = PLAIN) -> Tensor:
        """Map `[B, T, D]` to `[B, T, D]`."""
        norm = self.weight_v.norm(dim=(0, 1), keepdim=True)
        weight = self.weight_v * (self.weight_g / norm)
        return F.gelu(_convolve(x, weight, self.bias, self.groups, execution))


class ConvBlock(nn.Module):
    """One of data2vec's stacked convolutions: convolve, normalise without parameters, GELU."""

    def __init__(self, dim: int, width: int, kernel: int, groups: int):
        super().__init__()
        # "0": the convolution's position in fairseq's nn.Sequential.
        self.add_module("0", nn.Conv1d(dim, width, kernel, groups=groups))

    def forward(self, x: Tensor, execution: Execution = PLAIN) -> Tensor:
        """Map `[B, T, dim]` to `[B, T, width]`."""
        conv = self.get_submodule("0")
        y = _convolve(x, conv.weight, conv.bias, conv.groups, execution)  # type: ignore[arg-type]
        return F.gelu(F.layer_norm(y.float(), y.shape[-1:]).to(y.dtype))


class PositionalConv(nn.ModuleList):
    """Encodes the order of frames, to be added to the encoder's input.

    With `pos_conv_depth` 1 it is the single weight-normed convolution of wav2vec 2.0 and HuBERT
    (128 frames), with more data2vec's stack (5 convolutions of 19 frames, 95 together).
    """

    def __init__(self, cfg: AudioEncoderConfig):
        dim, kernel, groups = cfg.encoder_embed_dim, cfg.conv_pos, cfg.conv_pos_groups
        depth = cfg.pos_conv_depth
        if depth > 1:
            width = max(3, kernel // depth)
            super().__init__(ConvBlock(dim, dim, width, groups) for _ in range(depth))
        else:
            super().__init__([_WeightNormConv(dim, kernel, groups)])

    def forward(self, x: Tensor, execution: Execution = PLAIN) -> Tensor:
        """Map `[B, T, D]` to `[B, T, D]`."""
        for conv in self:
            x = conv(x, execution)
        return x
