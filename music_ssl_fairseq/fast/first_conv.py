"""The extractor's first layer - convolve, normalise, GELU - in one pass over its output.

The first layer maps 80,000 samples to 16,000 frames of 512 channels: 1.6 GB for 100 crops, which
the plain operations write and read a dozen times, forward and backward. Its window of 10 samples is
so small that computing everything again from the waveform costs less: the kernels here write the
output once, read its gradient once, and keep nothing in between.

A group norm with one channel per group needs mean and variance over time of `w . frame`. Both
follow from the mean and the second moments of the frames, ten by ten numbers per crop. So the norm
becomes weights and shifts per crop (`fold_moments`), through which autograd differentiates.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from music_ssl_fairseq.fast.device import has_triton, working_dtype
from music_ssl_fairseq.frames import frames_within

TAPS = 16
"""Taps to which filters are padded, the fewest that tensor cores multiply; kernels use the last."""


def can_fuse(waveform: Tensor, weight: Tensor, bias: Tensor | None) -> bool:
    """Return whether `fused_first_conv` takes these: on a GPU, in shapes that its kernels know."""
    channels, _, kernel = weight.shape
    return (
        waveform.is_cuda
        and bias is None
        and kernel < TAPS
        and channels >= 16
        and channels & (channels - 1) == 0
        and has_triton()
    )


def window_moments(waveform: Tensor, taps: int, stride: int) -> tuple[Tensor, Tensor]:
    """Return the mean of a convolution's windows, and of their products with themselves.

    From `[B, T]` to `[B, taps]` and `[B, taps, taps]`, float64.
    """
    if waveform.is_cuda and has_triton():
        from music_ssl_fairseq.fast.kernels import first_conv

        frames = frames_within(waveform.size(-1), taps, stride)
        return first_conv.moments(waveform.contiguous(), taps, stride, frames)
    windows = waveform.double().unfold(-1, taps, stride)
    return windows.mean(1), windows.transpose(1, 2) @ windows / windows.size(1)


def fold_moments(
    mean_window: Tensor, moments: Tensor, weight: Tensor, scale: Tensor, shift: Tensor, eps: float
) -> tuple[Tensor, Tensor]:
    """Fold a group norm into the convolution of one input channel before it.

    Args:
        mean_window, moments: of the convolution's windows, from `window_moments`.
        weight: `[C, 1, kernel]` of the convolution.
        scale, shift: `[C]`, the norm's weight and bias.

    Returns:
        Filters `[B, C, kernel]` and shifts `[B, C]` that give the convolution's output normalised
        over time. Computed in float64, because music is mostly low frequencies, which many
        channels all but cancel.
    """
    filters = weight.squeeze(1).double()
    mean = mean_window @ filters.t()
    square = ((filters @ moments) * filters).sum(-1)
    factor = scale.double() * torch.rsqrt((square - mean.square()).clamp(min=0) + eps)
    return (filters * factor.unsqueeze(-1)).float(), (shift.double() - mean * factor).float()


def fused_first_conv(
    waveform: Tensor,
    weight: Tensor,
    norm: tuple[Tensor, Tensor, float],
    group: bool,
    stride: int,
    lead: int = 0,
) -> Tensor:
    """Compute `gelu(norm(conv1d(waveform, weight, stride)))`, channels last.

    Args:
        waveform: `[B, T]` float32. It gets no gradient.
        weight: `[C, 1, kernel]`.
        norm: weight `[C]`, bias `[C]` and epsilon of the norm.
        group: True for a group norm with one channel per group, False for a layer norm over
            channels.
        lead: rows of zeros before each crop's first frame.

    Returns:
        `[B, lead + frames, C]` in autocast's type.
    """
    scale, shift, eps = norm
    if group:
        moments = window_moments(waveform, weight.size(-1), stride)
        filters, shifts = fold_moments(*moments, weight, scale, shift, eps)
        gains = shifts.detach()
    else:
        filters = weight.squeeze(1).unsqueeze(0)
        gains, shifts = scale.unsqueeze(0), shift.unsqueeze(0)
    return _apply(waveform, filters, gains, shifts, eps, group, stride, lead)


def folded_first_conv(
    waveform: Tensor, filters: Tensor, shifts: Tensor, stride: int, lead: int = 0
) -> Tensor:
    """Compute the first layer from a folded group norm: `gelu(filters * x + shifts)`.

    From `[B, T]` float32, and filters `[B, C, kernel]` and shifts `[B, C]` of `fold_moments`, to
    `[B, lead + frames, C]` in autocast's type, with `lead` rows of zeros before each crop's frames.
    """
    if can_fuse(waveform, filters[0].unsqueeze(1), None):
        return _apply(waveform, filters, shifts, shifts, 0.0, True, stride, lead)
    with torch.autocast(waveform.device.type, enabled=False):
        windows = waveform.float().unfold(-1, filters.size(-1), stride)
        x = F.gelu(torch.baddbmm(shifts.unsqueeze(1), windows, filters.transpose(1, 2)))
    x = x.to(working_dtype(waveform))
    return F.pad(x, (0, 0, lead, 0)) if lead else x


def _apply(
    waveform: Tensor, filters: Tensor, gains: Tensor, shifts: Tensor, eps: float, group: bool,
    stride: int, lead: int,
) -> Tensor:  # fmt: skip
    kernel = filters.size(-1)
    frames = frames_within(waveform.size(-1), kernel, stride)
    filters = F.pad(filters, (0, TAPS - kernel)).transpose(1, 2).contiguous()
    waveform = waveform.float()
    tensors = (waveform, filters.float(), gains.float(), shifts.float())
    dtype = working_dtype(waveform)
    return _FirstConv.apply(dtype, (eps, group, stride, frames, lead), *tensors)


class _FirstConv(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, dtype: torch.dtype, settings: tuple[Any, ...], waveform: Tensor,
        filters: Tensor, gains: Tensor, shifts: Tensor,
    ) -> Tensor:  # fmt: skip
        from music_ssl_fairseq.fast.kernels import first_conv

        ctx.save_for_backward(waveform, filters, gains, shifts)
        ctx.settings = settings
        return first_conv.forward(waveform, filters, gains, shifts, dtype, *settings)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        from music_ssl_fairseq.fast.kernels import first_conv

        gradients = first_conv.backward(grad.contiguous(), *ctx.saved_tensors, *ctx.settings)
        return (None, None, None, *gradients)
