"""Triton kernels, for Hopper GPUs, of matrix products with GELU at their end.

A product ends with its sums in registers. Applying GELU there, or its derivative in the backward
pass, saves a pass over memory: separate kernels take half as long as the products, and electrical
power that these then lack.

The forward pass keeps GELU's derivative for the backward pass instead of GELU's input. It is a
by-product here, and multiplying by it takes one instruction per number instead of twenty.

Each program computes many tiles of the output. Two programs share a multiprocessor: while one ends
a tile, the other uses the tensor cores.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from music_ssl_fairseq.fast.device import multiprocessors
from music_ssl_fairseq.fast.kernels.elementwise import gelu_parts, halves, loop_count
from music_ssl_fairseq.fast.kernels.launch import Kernel

# A tile is ROWS x COLUMNS, summed over DEPTH at a time, and stored in PIECES of columns.
# The fastest of 8 measured on an H100.
_FORWARD = {
    "ROWS": 128, "COLUMNS": 128, "DEPTH": 64, "PIECES": 2, "num_warps": 8, "num_stages": 3,
    "maxnreg": 128,
}  # fmt: skip
_BACKWARD = {
    "ROWS": 128, "COLUMNS": 128, "DEPTH": 64, "PIECES": 4, "num_warps": 4, "num_stages": 3,
}  # fmt: skip
_PROGRAMS = 2  # per multiprocessor, whose registers and shared memory hold no more


@triton.jit
def _tiles(rows, across, ROWS: tl.constexpr):
    """Return a program's tiles as a range over all, `across` of them side by side."""
    tiles = tl.cdiv(rows, ROWS) * across
    return loop_count(tl.program_id(0)), loop_count(tiles), loop_count(tl.num_programs(0))


@triton.jit
def _product(
    x, w, rows, store: tl.constexpr, own, ACROSS: tl.constexpr, K: tl.constexpr,
    WIDTH: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr,
    PIECES: tl.constexpr,
):  # fmt: skip
    """Compute a program's tiles of `x @ w` (`x @ w.t()` unless `ACROSS`).

    For each tile, or a part of it, `store` gets the sums and its own tensors, `own`.
    Tiles computed at the same time lie side by side: they share a few rows of `x`, and all of `w`
    stays in the cache.
    """
    across: tl.constexpr = (WIDTH + COLUMNS - 1) // COLUMNS
    first, last, step = _tiles(rows, across, ROWS)
    # One flat loop, so that a tile's first blocks are loaded before the previous tile ends.
    for tile in tl.range(first, last, step, flatten=True):
        row, column = tile // across * ROWS, tile % across * COLUMNS
        total = tl.zeros((ROWS, COLUMNS), tl.float32)
        for k in range(0, K, DEPTH):
            a = x.load([row, k])
            b = w.load([k, column]) if ACROSS else w.load([column, k]).T
            total = tl.dot(a, b, total)
        _in_pieces(total, store, own, row, column, WIDTH, ROWS, COLUMNS, PIECES)


@triton.jit
def _in_pieces(
    total, store: tl.constexpr, own, row, column, WIDTH: tl.constexpr, ROWS: tl.constexpr,
    COLUMNS: tl.constexpr, PIECES: tl.constexpr,
):  # fmt: skip
    """End a tile a few columns at a time, which reuse the same shared memory."""
    if PIECES > 1:
        half: tl.constexpr = COLUMNS // 2
        left, right = halves(total)
        _in_pieces(left, store, own, row, column, WIDTH, ROWS, half, PIECES // 2)
        column += half
        _in_pieces(right, store, own, row, column, WIDTH, ROWS, half, PIECES // 2)
    else:
        store(total, own, row, column, WIDTH, ROWS, COLUMNS)


@triton.jit
def _store_active(
    total, own, row, column, WIDTH: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr
):
    bias, active, slope = own
    c = column + tl.arange(0, COLUMNS)
    b = tl.load(bias + c, mask=c < WIDTH, other=0.0).to(tl.float32)
    value, derivative = gelu_parts(total + b[None, :])
    active.store([row, column], value.to(active.dtype))
    if slope is not None:
        slope.store([row, column], derivative.to(slope.dtype))


@triton.jit
def _store_gradient(
    total, own, row, column, WIDTH: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr
):
    slope, d_inner, d_sums = own
    # Rows beyond the end are loaded as zeros, and add nothing to the sums.
    d = total * slope.load([row, column]).to(tl.float32)
    d_inner.store([row, column], d.to(d_inner.dtype))
    c = column + tl.arange(0, COLUMNS)
    tl.store(d_sums + row // ROWS * WIDTH + c, tl.sum(d, 0), mask=c < WIDTH)


@Kernel
@triton.jit
def _forward(
    x, w, bias, active, slope, rows, K: tl.constexpr, WIDTH: tl.constexpr, ROWS: tl.constexpr,
    COLUMNS: tl.constexpr, DEPTH: tl.constexpr, PIECES: tl.constexpr,
):  # fmt: skip
    own = (bias, active, slope)
    _product(x, w, rows, _store_active, own, False, K, WIDTH, ROWS, COLUMNS, DEPTH, PIECES)


@Kernel
@triton.jit
def _backward(
    grad, w, slope, d_inner, d_sums, rows, K: tl.constexpr, WIDTH: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr, PIECES: tl.constexpr,
):  # fmt: skip
    own = (slope, d_inner, d_sums)
    _product(grad, w, rows, _store_gradient, own, True, K, WIDTH, ROWS, COLUMNS, DEPTH, PIECES)


def _grid(x: Tensor, width: int, own: dict[str, int]) -> tuple[int]:
    tiles = triton.cdiv(x.size(0), own["ROWS"]) * triton.cdiv(width, own["COLUMNS"])
    return (min(tiles, _PROGRAMS * multiprocessors(x.device)),)


def _blocks(x: Tensor, rows: int, columns: int) -> TensorDescriptor:
    """Describe a matrix that kernels load and store in blocks, without what is beyond its edges."""
    return TensorDescriptor.from_tensor(x, [rows, columns])


def forward(x: Tensor, w: Tensor, bias: Tensor, keep: bool = True) -> tuple[Tensor, Tensor | None]:
    """Compute GELU of `x @ w.t() + bias`.

    All are contiguous and of one type, with rows of whole 16 bytes.

    Args:
        x: `[N, K]`.
        w: `[M, K]`.
        bias: `[M]`.
        keep: whether `backward` will follow.

    Returns:
        The result, and GELU's derivative there or None, `[N, M]` each.
    """
    (rows, depth), width = x.shape, w.size(0)
    own = _FORWARD
    active = x.new_empty(rows, width)
    slope = torch.empty_like(active) if keep else None
    piece = own["COLUMNS"] // own["PIECES"]
    _forward[_grid(x, width, own)](
        _blocks(x, own["ROWS"], own["DEPTH"]), _blocks(w, own["COLUMNS"], own["DEPTH"]), bias,
        _blocks(active, own["ROWS"], piece),
        None if slope is None else _blocks(slope, own["ROWS"], piece), rows, K=depth, WIDTH=width,
        **own,
    )  # fmt: skip
    return active, slope


def parts(rows: int) -> int:
    """Return the number of parts in which `backward` writes a sum over `rows`."""
    return triton.cdiv(rows, _BACKWARD["ROWS"])


def backward(grad: Tensor, w: Tensor, slope: Tensor, d_sums: Tensor) -> Tensor:
    """Compute `(grad @ w) * slope`, the gradient of GELU's input.

    Args:
        grad: `[N, K]`, of the product of GELU's output and `w`.
        w: `[K, M]`, of that product.
        slope: `[N, M]`, from `forward`.
        d_sums: `[parts, M]` float32, written: parts of the result's sum over N.

    Returns:
        `[N, M]`.
    """
    (rows, depth), width = grad.shape, w.size(1)
    own = _BACKWARD
    d_inner = torch.empty_like(slope)
    piece = own["COLUMNS"] // own["PIECES"]
    _backward[_grid(grad, width, own)](
        _blocks(grad, own["ROWS"], own["DEPTH"]), _blocks(w, own["DEPTH"], own["COLUMNS"]),
        _blocks(slope, own["ROWS"], piece), _blocks(d_inner, own["ROWS"], piece), d_sums, rows,
        K=depth, WIDTH=width, **own,
    )  # fmt: skip
    return d_inner
