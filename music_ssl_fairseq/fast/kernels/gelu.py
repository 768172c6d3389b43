"""Triton kernels of GELU in one pass over memory, and of the gradient of a bias before it."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from music_ssl_fairseq.fast.kernels.elementwise import gelu_parts
from music_ssl_fairseq.fast.kernels.launch import Kernel

_FLAT = {"BLOCK": 2048, "num_warps": 8}
_SUMMED = {"ROWS": 8, "BLOCK": 128, "num_warps": 4}
# Programs over the rows, per block of columns. For 3072 columns, that is eight programs per
# multiprocessor of an H100 or H200, which runs as many at once.
_PROGRAMS = 44


# Number j of a crop of `y` is GELU of number j + shift of that crop of `x`; the first `lead` are 0.


@Kernel
@triton.jit
def _forward(x, y, numbers, written, lead, shift, BLOCK: tl.constexpr):
    crop = tl.program_id(1).to(tl.int64)
    j = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    read = (j >= lead) & (j < written)
    u = tl.load(x + crop * numbers + (j + shift), mask=read, other=0.0).to(tl.float32)
    value, _ = gelu_parts(u)
    tl.store(y + crop * written + j, value.to(y.dtype.element_ty), mask=j < written)


@Kernel
@triton.jit
def _backward(x, grad, d_x, numbers, written, lead, shift, BLOCK: tl.constexpr):
    crop = tl.program_id(1).to(tl.int64)
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    j = i - shift
    read = (j >= lead) & (j < written)
    u = tl.load(x + crop * numbers + i, mask=read, other=0.0).to(tl.float32)
    dy = tl.load(grad + crop * written + j, mask=read, other=0.0).to(tl.float32)
    _, slope = gelu_parts(u)
    where = d_x + crop * numbers + i
    tl.store(where, (dy * slope).to(d_x.dtype.element_ty), mask=i < numbers)


@Kernel
@triton.jit
def _backward_summed(
    x, grad, d_x, d_sums, rows, columns, BLOCKS: tl.constexpr, ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    c = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)[None, :]
    total = tl.zeros((ROWS, BLOCK), tl.float32)
    row = tl.program_id(1).to(tl.int64) * ROWS + tl.arange(0, ROWS)[:, None]
    inside = (row < rows) & (c < columns)
    where = row * columns + c
    u = tl.load(x + where, mask=inside, other=0.0)
    dy = tl.load(grad + where, mask=inside, other=0.0)
    for _ in range(BLOCKS):
        # Load the next rows while these are computed.
        u_here, dy_here, inside_here, here = u.to(tl.float32), dy.to(tl.float32), inside, where
        row += tl.num_programs(1) * ROWS
        inside = (row < rows) & (c < columns)
        where = row * columns + c
        u = tl.load(x + where, mask=inside, other=0.0)
        dy = tl.load(grad + where, mask=inside, other=0.0)
        _, slope = gelu_parts(u_here)
        du = dy_here * slope
        tl.store(d_x + here, du.to(d_x.dtype.element_ty), mask=inside_here)
        total += du
    column = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    where = d_sums + tl.program_id(1) * columns + column
    tl.store(where, tl.sum(total, 0), mask=column < columns)


def forward(x: Tensor, frames: int, skip: int = 0, lead: int = 0) -> Tensor:
    """Compute GELU of some frames of contiguous `x`; see `fast.gelu.kernel_gelu`."""
    batch, length, dim = x.shape
    rows = lead + frames
    y = x.new_empty(batch, rows, dim)
    grid = (triton.cdiv(rows * dim, _FLAT["BLOCK"]), batch)
    _forward[grid](x, y, length * dim, rows * dim, lead * dim, (skip - lead) * dim, **_FLAT)
    return y


def backward(x: Tensor, grad: Tensor, skip: int = 0, lead: int = 0) -> Tensor:
    """Compute the gradient of `x` `[B, T, D]`: 0 in rows that `forward` does not read."""
    batch, length, dim = x.shape
    d_x = torch.empty_like(x)
    grid = (triton.cdiv(length * dim, _FLAT["BLOCK"]), batch)
    numbers, written = length * dim, grad.size(1) * dim
    _backward[grid](x, grad, d_x, numbers, written, lead * dim, (skip - lead) * dim, **_FLAT)
    return d_x


def parts(rows: int) -> int:
    """Return the number of parts in which `backward_summed` writes a sum over `rows`."""
    return min(_PROGRAMS, triton.cdiv(rows, _SUMMED["ROWS"]))


def backward_summed(x: Tensor, grad: Tensor, d_sums: Tensor) -> Tensor:
    """Compute the gradient of `x` `[N, D]`.

    Args:
        d_sums: `[parts, D]` float32, written: parts of the result's sum over N.
    """
    rows, columns = x.shape
    d_x = torch.empty_like(x)
    blocks = triton.cdiv(rows, _SUMMED["ROWS"])
    programs = d_sums.size(0)
    _backward_summed[(triton.cdiv(columns, _SUMMED["BLOCK"]), programs)](
        x, grad, d_x, d_sums, rows, columns, BLOCKS=triton.cdiv(blocks, programs), **_SUMMED
    )
    return d_x
