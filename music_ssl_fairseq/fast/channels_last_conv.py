"""Unpadded convolution over frames with channels last."""

import torch
from torch import Tensor
from torch.nn import functional as F

from music_ssl_fairseq.fast.device import working_dtype
from music_ssl_fairseq.frames import frames_within


def conv_channels_last(x: Tensor, weight: Tensor, bias: Tensor | None, stride: int) -> Tensor:
    """Convolve without padding, reading and writing channels last, without copies.

    With kernel = stride, windows are a reshaped view of the input: one matrix product. A single
    input channel is unfolded. Otherwise cuDNN convolves in its channels-last layout.

    Args:
        x: `[B, T, C]`.
        weight: `[channels, C, kernel]`.

    Returns:
        `[B, frames, channels]`.
    """
    dtype = working_dtype(x)
    x, weight = x.to(dtype), weight.to(dtype)
    batch, length, in_channels = x.shape
    kernel = weight.size(-1)
    frames = frames_within(length, kernel, stride)
    taps = weight.permute(2, 1, 0)  # [kernel, C, channels]
    if in_channels == 1:
        # Tensor cores need rows of a multiple of 8 numbers.
        extra = -kernel % 8
        windows = F.pad(x.squeeze(-1), (0, extra)).unfold(-1, kernel + extra, stride)[:, :frames]
        y = windows @ F.pad(taps.squeeze(1), (0, 0, 0, extra))
    elif kernel == stride:
        y = x[:, : frames * stride].reshape(batch, frames, -1) @ taps.flatten(0, 1)
    else:
        image = x.transpose(1, 2).unsqueeze(2)  # [B, C, 1, T], laid out as [B, 1, T, C]
        filters = weight.unsqueeze(2).contiguous(memory_format=torch.channels_last)
        y = F.conv2d(image, filters, None, (1, stride)).squeeze(2).transpose(1, 2)
    return y if bias is None else y + bias.to(dtype)
