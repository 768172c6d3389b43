"""Triton kernels of the extractor's first layer; `fast/first_conv.py` has the reasons.

Each program computes a few frames at a time, with a layer norm all their channels. `filters` are
`[1 or B, TAPS, C]`, `gains` and `shifts` `[1 or B, C]`: one for all crops, or one per crop. With a
group norm folded into the filters, `gains` are not used. Each crop's output has `lead` rows of
zeros before its first frame, whose gradient is not read.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from music_ssl_fairseq.fast.kernels.elementwise import gelu_parts
from music_ssl_fairseq.fast.kernels.launch import Kernel

_CHANNELS = 256  # per program; with a layer norm, all of them
_FORWARD = (32, 8)  # frames per block, and blocks per program, which reads its filters once
_BACKWARD = (16, 32)  # many blocks, because each program writes its sums once
_MOMENTS = (8, 32)


@triton.jit
def _convolve(
    waveform, filters, crop, length, t,
    stride: tl.constexpr, TAPS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Return frames `[BLOCK, TAPS]` at `t`, and their product with the filters `[BLOCK, C]`."""
    k = tl.arange(0, TAPS)
    position = t[:, None] * stride + k[None, :]
    windows = tl.load(waveform + crop * length + position, mask=position < length, other=0.0)
    return windows, tl.dot(windows, filters, input_precision=PRECISION)


@Kernel
@triton.jit(do_not_specialize=["lead"])
def _forward(
    waveform, filters, gains, shifts, output, length, frames, lead, per_crop, eps,
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
        y, _ = gelu_parts(u)
        where = (crop * (lead + frames) + lead + t[:, None]) * C + c[None, :]
        tl.store(output + where, y.to(output.dtype.element_ty), mask=t[:, None] < frames)


@Kernel
@triton.jit(do_not_specialize=["lead"])
def _backward(
    grad, waveform, filters, gains, shifts, d_filters, d_gains, d_shifts, length, frames, lead,
    per_crop, eps, stride: tl.constexpr, TAPS: tl.constexpr, C: tl.constexpr,
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
        where = (crop * (lead + frames) + lead + t[:, None]) * C + c[None, :]
        dy = tl.load(grad + where, mask=t[:, None] < frames, other=0.0).to(tl.float32)
        if GROUP:
            _, slope = gelu_parts(z + shift[None, :])
            dz = dy * slope
            # One tap is always free: a sample of 1 there sums the gradients of shifts.
            windows = tl.where(k[None, :] == TAPS - 1, 1.0, windows)
        else:
            gain = tl.load(gains + own * C + c)
            mean = tl.sum(z, 1) / C
            centred = z - mean[:, None]
            rstd = tl.rsqrt(tl.sum(centred * centred, 1) / C + eps)
            normed = centred * rstd[:, None]
            _, slope = gelu_parts(normed * gain[None, :] + shift[None, :])
            du = dy * slope
            sum_shifts += tl.sum(du, 0)
            sum_gains += tl.sum(du * normed, 0)
            d_normed = du * gain[None, :]
            along = tl.sum(d_normed * normed, 1) / C
            level = tl.sum(d_normed, 1) / C
            dz = (d_normed - level[:, None] - normed * along[:, None]) * rstd[:, None]
        sum_filters += tl.dot(tl.trans(windows), dz, input_precision="tf32")
    if GROUP:
        sum_shifts = tl.sum(tl.where(k[:, None] == TAPS - 1, sum_filters, 0.0), 0)
    program = crop * tl.num_programs(0) + tl.program_id(0)
    tl.store(d_filters + program * TAPS * C + k[:, None] * C + c[None, :], sum_filters)
    tl.store(d_shifts + program * C + c, sum_shifts)
    tl.store(d_gains + program * C + c, sum_gains)


@Kernel
@triton.jit
def _moments(
    waveform, sums, length, frames,
    stride: tl.constexpr, TAPS: tl.constexpr, BLOCK: tl.constexpr, BLOCKS: tl.constexpr,
):  # fmt: skip
    crop = tl.program_id(1).to(tl.int64)
    k = tl.arange(0, TAPS)
    products = tl.zeros((BLOCK, TAPS, TAPS), tl.float64)
    samples = tl.zeros((BLOCK, TAPS), tl.float64)
    for block in range(BLOCKS):
        t = (tl.program_id(0) * BLOCKS + block) * BLOCK + tl.arange(0, BLOCK)
        position = t[:, None] * stride + k[None, :]
        inside = (t[:, None] < frames) & (position < length)
        x = tl.load(waveform + crop * length + position, mask=inside, other=0.0).to(tl.float64)
        products += x[:, :, None] * x[:, None, :]
        samples += x
    own = sums + (crop * tl.num_programs(0) + tl.program_id(0)) * (TAPS + 1) * TAPS
    tl.store(own + k[:, None] * TAPS + k[None, :], tl.sum(products, 0))
    tl.store(own + TAPS * TAPS + k, tl.sum(samples, 0))


def moments(waveform: Tensor, taps: int, stride: int, frames: int) -> tuple[Tensor, Tensor]:
    """Return the means of windows `[B, taps]` and of their products `[B, taps, taps]`, float64."""
    batch, length = waveform.shape
    wide = triton.next_power_of_2(taps)
    block, blocks = _MOMENTS
    parts = triton.cdiv(frames, block * blocks)
    sums = waveform.new_empty(batch, parts, wide + 1, wide, dtype=torch.float64)
    _moments[(parts, batch)](
        waveform, sums, length, frames,
        stride=stride, TAPS=wide, BLOCK=block, BLOCKS=blocks, num_warps=4,
    )  # fmt: skip
    means = sums.sum(1) / frames
    return means[:, wide, :taps], means[:, :taps, :taps]


def _shape(channels: int, group: bool) -> tuple[int, int]:
    """Return channels per program and its warps: a layer norm needs all channels at once."""
    return (min(_CHANNELS, channels), 4) if group else (channels, 8)


def _precision(dtype: torch.dtype) -> str:
    """Return the precision of products: TF32, if the result is rounded to fewer digits anyway."""
    return "tf32x3" if dtype == torch.float32 else "tf32"


def forward(
    waveform: Tensor, filters: Tensor, gains: Tensor, shifts: Tensor, dtype: torch.dtype,
    eps: float, group: bool, stride: int, frames: int, lead: int,
) -> Tensor:  # fmt: skip
    """Map `[B, T]` to `[B, lead + frames, C]`."""
    batch, length = waveform.shape
    taps, channels = filters.shape[1:]
    output = torch.empty(batch, lead + frames, channels, dtype=dtype, device=waveform.device)
    output[:, :lead].zero_()
    held, warps = _shape(channels, group)
    block, blocks = _FORWARD
    grid = (triton.cdiv(frames, block * blocks), batch, channels // held)
    _forward[grid](
        waveform, filters, gains, shifts, output, length, frames, lead, int(filters.size(0) > 1),
        eps, stride=stride, TAPS=taps, C=channels, BLOCK=block, BLOCKS=blocks, HELD=held,
        GROUP=group, PRECISION=_precision(dtype), num_warps=warps,
    )  # fmt: skip
    return output


def backward(
    grad: Tensor, waveform: Tensor, filters: Tensor, gains: Tensor, shifts: Tensor, eps: float,
    group: bool, stride: int, frames: int, lead: int,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Compute the gradients of filters, gains and shifts, in their shapes."""
    batch, length = waveform.shape
    taps, channels = filters.shape[1:]
    held, warps = _shape(channels, group)
    block, blocks = _BACKWARD
    parts = triton.cdiv(frames, block * blocks)
    sums = [
        torch.empty(batch, parts, *shape, device=grad.device)
        for shape in ((taps, channels), (channels,), (channels,))
    ]
    _backward[(parts, batch, channels // held)](
        grad, waveform, filters, gains, shifts, *sums, length, frames, lead,
        int(filters.size(0) > 1), eps, stride=stride, TAPS=taps, C=channels, BLOCK=block,
        BLOCKS=blocks, HELD=held, GROUP=group, PRECISION=_precision(grad.dtype), num_warps=warps,
    )  # fmt: skip
    return tuple(  # type: ignore[return-value]
        total.sum(1) if like.size(0) > 1 else total.sum((0, 1)).unsqueeze(0)
        for total, like in zip(sums, (filters, gains, shifts), strict=True)
    )
