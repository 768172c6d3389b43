"""Triton kernels of the extractor's first layer; `first_layer.py` says what they are for.

Each program holds some frames with all their channels. `filters` are `[1 or B, TAPS, C]`, `gains`
and `shifts` `[1 or B, C]`: one for all crops, or one for each. With a group norm folded into them,
`gains` are not used.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from music_ssl_fairseq.modules.first_layer import TAPS

_FORWARD_FRAMES = 32
_BACKWARD_FRAMES = 16
_BACKWARD_BLOCKS = 64  # blocks of frames a program, so that its sums are written rarely


@triton.jit
def _gelu_parts(u):
    """GELU of `u` and its derivative, with the exact error function."""
    cdf = 0.5 * (1.0 + tl.erf(u * 0.7071067811865476))
    pdf = 0.3989422804014327 * tl.exp(-0.5 * u * u)
    return u * cdf, cdf + u * pdf


@triton.jit
def _convolve(
    waveform, filters, crop, length, t, stride: tl.constexpr, TAPS: tl.constexpr
):
    """Frames `[BLOCK, TAPS]` at `t`, and their product with the filters `[BLOCK, C]`."""
    k = tl.arange(0, TAPS)
    position = t[:, None] * stride + k[None, :]
    windows = tl.load(waveform + crop * length + position, mask=position < length, other=0.0)
    return windows, tl.dot(windows, filters, input_precision="tf32x3")


@triton.jit
def _forward(
    waveform, filters, gains, shifts, output, length, frames, per_crop, eps,
    stride: tl.constexpr, TAPS: tl.constexpr, C: tl.constexpr,
    BLOCK: tl.constexpr, GROUP: tl.constexpr,
):  # fmt: skip
    crop = tl.program_id(1).to(tl.int64)
    t = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    c = tl.arange(0, C)
    k = tl.arange(0, TAPS)
    own = crop * per_crop
    w = tl.load(filters + own * TAPS * C + k[:, None] * C + c[None, :])
    shift = tl.load(shifts + own * C + c)
    _, z = _convolve(waveform, w, crop, length, t, stride, TAPS)
    if GROUP:
        u = z + shift[None, :]
    else:
        gain = tl.load(gains + own * C + c)
        mean = tl.sum(z, 1) / C
        centred = z - mean[:, None]
        variance = tl.sum(centred * centred, 1) / C
        u = centred * tl.rsqrt(variance + eps)[:, None] * gain[None, :] + shift[None, :]
    y, _ = _gelu_parts(u)
    where = (crop * frames + t[:, None]) * C + c[None, :]
    tl.store(output + where, y.to(output.dtype.element_ty), mask=t[:, None] < frames)


@triton.jit
def _backward(
    grad, waveform, filters, gains, shifts, d_filters, d_gains, d_shifts, length, frames, per_crop,
    eps, stride: tl.constexpr, TAPS: tl.constexpr, C: tl.constexpr,
    BLOCK: tl.constexpr, BLOCKS: tl.constexpr, GROUP: tl.constexpr,
):  # fmt: skip
    crop = tl.program_id(1).to(tl.int64)
    c = tl.arange(0, C)
    k = tl.arange(0, TAPS)
    own = crop * per_crop
    w = tl.load(filters + own * TAPS * C + k[:, None] * C + c[None, :])
    shift = tl.load(shifts + own * C + c)
    sum_filters = tl.zeros((TAPS, C), tl.float32)
    sum_shifts = tl.zeros((C,), tl.float32)
    sum_gains = tl.zeros((C,), tl.float32)
    for block in range(BLOCKS):
        t = (tl.program_id(0) * BLOCKS + block) * BLOCK + tl.arange(0, BLOCK)
        windows, z = _convolve(waveform, w, crop, length, t, stride, TAPS)
        where = (crop * frames + t[:, None]) * C + c[None, :]
        dy = tl.load(grad + where, mask=t[:, None] < frames, other=0.0).to(tl.float32)
        if GROUP:
            _, slope = _gelu_parts(z + shift[None, :])
            dz = dy * slope
            sum_shifts += tl.sum(dz, 0)
        else:
            gain = tl.load(gains + own * C + c)
            mean = tl.sum(z, 1) / C
            centred = z - mean[:, None]
            rstd = tl.rsqrt(tl.sum(centred * centred, 1) / C + eps)
            normed = centred * rstd[:, None]
            _, slope = _gelu_parts(normed * gain[None, :] + shift[None, :])
            du = dy * slope
            sum_shifts += tl.sum(du, 0)
            sum_gains += tl.sum(du * normed, 0)
            d_normed = du * gain[None, :]
            along = tl.sum(d_normed * normed, 1) / C
            level = tl.sum(d_normed, 1) / C
            dz = (d_normed - level[:, None] - normed * along[:, None]) * rstd[:, None]
        sum_filters += tl.dot(tl.trans(windows), dz, input_precision="tf32")
    program = crop * tl.num_programs(0) + tl.program_id(0)
    tl.store(d_filters + program * TAPS * C + k[:, None] * C + c[None, :], sum_filters)
    tl.store(d_shifts + program * C + c, sum_shifts)
    tl.store(d_gains + program * C + c, sum_gains)


def forward(
    waveform: Tensor,
    filters: Tensor,
    gains: Tensor,
    shifts: Tensor,
    eps: float,
    group: bool,
    stride: int,
    frames: int,
    dtype: torch.dtype,
) -> Tensor:
    """`[B, T]` to `[B, frames, C]`."""
    batch, length = waveform.shape
    channels = filters.size(-1)
    output = torch.empty(batch, frames, channels, dtype=dtype, device=waveform.device)
    grid = (triton.cdiv(frames, _FORWARD_FRAMES), batch)
    _forward[grid](
        waveform, filters, gains, shifts, output, length, frames, int(filters.size(0) > 1), eps,
        stride=stride, TAPS=TAPS, C=channels,
        BLOCK=_FORWARD_FRAMES, GROUP=group, num_warps=8,
    )  # fmt: skip
    return output


def backward(
    grad: Tensor,
    waveform: Tensor,
    filters: Tensor,
    gains: Tensor,
    shifts: Tensor,
    eps: float,
    group: bool,
    stride: int,
    frames: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of filters, gains and shifts, in their shapes."""
    batch, length = waveform.shape
    channels = filters.size(-1)
    parts = triton.cdiv(frames, _BACKWARD_FRAMES * _BACKWARD_BLOCKS)
    sums = [
        torch.empty(batch, parts, *shape, device=grad.device)
        for shape in ((TAPS, channels), (channels,), (channels,))
    ]
    _backward[(parts, batch)](
        grad, waveform, filters, gains, shifts, *sums, length, frames, int(filters.size(0) > 1),
        eps, stride=stride, TAPS=TAPS, C=channels,
        BLOCK=_BACKWARD_FRAMES, BLOCKS=_BACKWARD_BLOCKS, GROUP=group, num_warps=8,
    )  # fmt: skip
    return tuple(  # type: ignore[return-value]
        total.sum(1) if like.size(0) > 1 else total.sum((0, 1)).unsqueeze(0)
        for total, like in zip(sums, (filters, gains, shifts), strict=True)
    )

