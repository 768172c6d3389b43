"""Triton kernels of the extractor's first layer; `first_layer.py` says what they are for.

Each program takes a few frames at a time, and with a layer norm all their channels. `filters` are
`[1 or B, TAPS, C]`, `gains` and `shifts` `[1 or B, C]`: one for all crops, or one for each. With a
group norm folded into them, `gains` are not used.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

_CHANNELS = 128  # that a program holds; with a layer norm, all of them
_FORWARD = (16, 8)  # frames a block, and blocks a program, which reads its filters once
_BACKWARD = (32, 16)  # so that a program's sums are written rarely
_BACKWARD_ALL = (16, 32)  # with all channels in a program


@triton.jit
def _gelu_parts(u):
    """GELU of `u` and its derivative.

    The error function is Abramowitz and Stegun's 7.1.26, off by 1.5e-7 at most: a rounding error of
    float32. Its exponential is the derivative's too, which makes these kernels half as long.
    """
    x = tl.abs(u) * 0.7071067811865476
    t = 1.0 / (1.0 + 0.3275911 * x)
    bell = tl.exp(-x * x)
    tail = t * (0.254829592 + t * (-0.284496736 + t * (1.421413741 + t * (-1.453152027 + t * 1.061405429))))  # noqa: E501  # fmt: skip
    tail = 0.5 * tail * bell
    cdf = tl.where(u >= 0, 1.0 - tail, tail)
    return u * cdf, cdf + u * (0.3989422804014327 * bell)


@triton.jit
def _convolve(
    waveform, filters, crop, length, t,
    stride: tl.constexpr, TAPS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Frames `[BLOCK, TAPS]` at `t`, and their product with the filters `[BLOCK, C]`."""
    k = tl.arange(0, TAPS)
    position = t[:, None] * stride + k[None, :]
    windows = tl.load(waveform + crop * length + position, mask=position < length, other=0.0)
    return windows, tl.dot(windows, filters, input_precision=PRECISION)


@triton.jit
def _forward(
    waveform, filters, gains, shifts, output, length, frames, per_crop, eps,
    stride: tl.constexpr, TAPS: tl.constexpr, C: tl.constexpr, BLOCK: tl.constexpr,
    BLOCKS: tl.constexpr, HELD: tl.constexpr, GROUP: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    crop = tl.program_id(1).to(tl.int64)
    c = tl.program_id(2) * HELD + tl.arange(0, HELD)
    k = tl.arange(0, TAPS)
    own = crop * per_crop
    w = tl.load(filters + own * TAPS * C + k[:, None] * C + c[None, :])
    shift = tl.load(shifts + own * C + c)
    for block in range(BLOCKS):
        t = (tl.program_id(0) * BLOCKS + block) * BLOCK + tl.arange(0, BLOCK)
        _, z = _convolve(waveform, w, crop, length, t, stride, TAPS, PRECISION)
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
    BLOCK: tl.constexpr, BLOCKS: tl.constexpr, HELD: tl.constexpr, GROUP: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    crop = tl.program_id(1).to(tl.int64)
    c = tl.program_id(2) * HELD + tl.arange(0, HELD)
    k = tl.arange(0, TAPS)
    own = crop * per_crop
    w = tl.load(filters + own * TAPS * C + k[:, None] * C + c[None, :])
    shift = tl.load(shifts + own * C + c)
    sum_filters = tl.zeros((TAPS, HELD), tl.float32)
    sum_shifts = tl.zeros((HELD,), tl.float32)
    sum_gains = tl.zeros((HELD,), tl.float32)
    for block in range(BLOCKS):
        t = (tl.program_id(0) * BLOCKS + block) * BLOCK + tl.arange(0, BLOCK)
        windows, z = _convolve(waveform, w, crop, length, t, stride, TAPS, PRECISION)
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


def _shape(channels: int, group: bool) -> tuple[int, int]:
    """Channels that a program holds, and its warps: a layer norm needs all channels at once."""
    return (min(_CHANNELS, channels), 4) if group else (channels, 8)


def _precision(dtype: torch.dtype) -> str:
    """Of products: single TF32, where the result is rounded to fewer digits anyway."""
    return "tf32x3" if dtype == torch.float32 else "tf32"


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
    taps, channels = filters.shape[1:]
    output = torch.empty(batch, frames, channels, dtype=dtype, device=waveform.device)
    held, warps = _shape(channels, group)
    block, blocks = _FORWARD
    grid = (triton.cdiv(frames, block * blocks), batch, channels // held)
    _forward[grid](
        waveform, filters, gains, shifts, output, length, frames, int(filters.size(0) > 1), eps,
        stride=stride, TAPS=taps, C=channels, BLOCK=block, BLOCKS=blocks, HELD=held, GROUP=group,
        PRECISION=_precision(dtype), num_warps=warps,
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
    taps, channels = filters.shape[1:]
    held, warps = _shape(channels, group)
    block, blocks = _BACKWARD if group else _BACKWARD_ALL
    parts = triton.cdiv(frames, block * blocks)
    sums = [
        torch.empty(batch, parts, *shape, device=grad.device)
        for shape in ((taps, channels), (channels,), (channels,))
    ]
    _backward[(parts, batch, channels // held)](
        grad, waveform, filters, gains, shifts, *sums, length, frames, int(filters.size(0) > 1),
        eps, stride=stride, TAPS=taps, C=channels, BLOCK=block, BLOCKS=blocks, HELD=held,
        GROUP=group, PRECISION=_precision(grad.dtype), num_warps=warps,
    )  # fmt: skip
    return tuple(  # type: ignore[return-value]
        total.sum(1) if like.size(0) > 1 else total.sum((0, 1)).unsqueeze(0)
        for total, like in zip(sums, (filters, gains, shifts), strict=True)
    )
