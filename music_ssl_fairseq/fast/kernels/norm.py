"""Triton kernels of a Transformer layer's dropout, residual sum and norm, in one pass over memory.

The backward pass also sums its gradients over all frames, for the biases before and in the norm:
separate sums would read the gradients once more.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from music_ssl_fairseq.fast.hashed_dropout import drop_threshold
from music_ssl_fairseq.fast.kernels.elementwise import kept
from music_ssl_fairseq.fast.kernels.launch import Kernel

_FORWARD = {"ROWS": 4, "num_warps": 4}
# Programs of the backward pass, each one warp that works on one row at a time and writes its sums
# once: eight per multiprocessor of an H100 or H200.
_PROGRAMS = 1056


@Kernel
@triton.jit(do_not_specialize_on_alignment=["seeds"])
def _forward(
    branch, residual, indices, weight, bias, seeds, sums, output, rows, eps, threshold, factor,
    D: tl.constexpr, WIDTH: tl.constexpr, ROWS: tl.constexpr, DROP: tl.constexpr,
    SELECTED: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)[:, None]
    c = tl.arange(0, WIDTH)[None, :]
    inside = (row < rows) & (c < D)
    where = row * D + c
    x = tl.load(branch + where, mask=inside, other=0.0).to(tl.float32)
    if DROP:
        x = tl.where(kept(where.to(tl.int32), tl.load(seeds), threshold), x * factor, 0.0)
    place = _residual_row(indices, row, rows, SELECTED) * D + c
    x += tl.load(residual + place, mask=inside, other=0.0).to(tl.float32)
    # Normalise the rounded sum, which is what the backward pass has.
    x = x.to(sums.dtype.element_ty)
    tl.store(sums + where, x, mask=inside)
    normed, _ = _normed(x.to(tl.float32), c < D, eps, D)
    scale = tl.load(weight + c, mask=c < D, other=0.0)
    y = normed * scale + tl.load(bias + c, mask=c < D, other=0.0)
    tl.store(output + where, y.to(output.dtype.element_ty), mask=inside)


@triton.jit
def _residual_row(indices, row, rows, SELECTED: tl.constexpr):
    """Return the row of the residual that belongs to a row of the branch."""
    if SELECTED:
        return tl.load(indices + row, mask=row < rows, other=0).to(tl.int64)
    else:
        return row


@triton.jit
def _normed(x, inside, eps, D: tl.constexpr):
    """Return rows with mean 0 and variance 1, and the reciprocals of their standard deviations.

    Numbers not `inside` a row are 0.
    """
    centred = tl.where(inside, x - tl.sum(x, -1, keep_dims=True) / D, 0.0)
    rstd = tl.rsqrt(tl.sum(centred * centred, -1, keep_dims=True) / D + eps)
    return centred * rstd, rstd


@Kernel
@triton.jit(do_not_specialize_on_alignment=["seeds"])
def _backward(
    grad, grad_2, sums, indices, weight, seeds, d_residual, d_branch, d_sums, rows, eps, threshold,
    factor, D: tl.constexpr, WIDTH: tl.constexpr, BLOCKS: tl.constexpr, DROP: tl.constexpr,
    TWO: tl.constexpr, SELECTED: tl.constexpr,
):  # fmt: skip
    c = tl.arange(0, WIDTH)
    scale = tl.load(weight + c, mask=c < D, other=0.0)
    seed = tl.load(seeds)
    sum_weight = tl.zeros((WIDTH,), tl.float32)
    sum_bias = tl.zeros((WIDTH,), tl.float32)
    sum_branch = tl.zeros((WIDTH,), tl.float32)
    row = tl.program_id(0).to(tl.int64)
    inside = (row < rows) & (c < D)
    where = row * D + c
    dy_1, dy_2, x = _load(grad, grad_2, sums, where, inside, TWO)
    for _ in range(BLOCKS):
        # Load the next row while this one is computed.
        dy = dy_1.to(tl.float32)
        if TWO:
            dy += dy_2.to(tl.float32)
        x_here = x.to(tl.float32)
        row_here, here, inside_here = row, where, inside
        row += tl.num_programs(0)
        where = row * D + c
        inside = (row < rows) & (c < D)
        dy_1, dy_2, x = _load(grad, grad_2, sums, where, inside, TWO)
        # Rows beyond the end are zeros, and so are their gradients.
        normed, rstd = _normed(x_here, c < D, eps, D)
        sum_weight += dy * normed
        sum_bias += dy
        d_normed = dy * scale
        level = tl.sum(d_normed, 0) / D
        along = tl.sum(d_normed * normed, 0) / D
        dx = (d_normed - level - normed * along) * rstd
        place = _residual_row(indices, row_here, rows, SELECTED) * D + c
        tl.store(d_residual + place, dx.to(d_residual.dtype.element_ty), mask=inside_here)
        if DROP:
            dx = tl.where(kept(here.to(tl.int32), seed, threshold), dx * factor, 0.0)
        if DROP or SELECTED:
            tl.store(d_branch + here, dx.to(d_branch.dtype.element_ty), mask=inside_here)
        sum_branch += dx
    own = d_sums + tl.program_id(0) * 3 * D + c
    tl.store(own, sum_weight, mask=c < D)
    tl.store(own + D, sum_bias, mask=c < D)
    tl.store(own + 2 * D, sum_branch, mask=c < D)


@triton.jit
def _load(grad, grad_2, sums, where, inside, TWO: tl.constexpr):
    dy = tl.load(grad + where, mask=inside, other=0.0)
    dy_2 = tl.load(grad_2 + where, mask=inside, other=0.0) if TWO else dy
    return dy, dy_2, tl.load(sums + where, mask=inside, other=0.0)


def forward(
    branch: Tensor, residual: Tensor, weight: Tensor, bias: Tensor, eps: float, p: float,
    seed: Tensor, masked_indices: Tensor | None = None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Compute `layer_norm(residual + dropout(branch))` over the last axis.

    Args:
        branch: `[N, D]`.
        residual: `[N, D]`, or more rows, from which `masked_indices` select N.
        weight: `[D]` of the norm, like `bias`.
        p: dropout, 0 for none: `hashed_dropout` of the same seed.
        seed: int32, 0-d.
        masked_indices: `[N]` int32, distinct rows of `residual`; None for all rows in order.

    Returns:
        The norm's input, for the backward pass, and its output: `[N, D]` in the type of `branch`.
    """
    rows, dim = branch.shape
    sums, output = torch.empty_like(branch), torch.empty_like(branch)
    _forward[(triton.cdiv(rows, _FORWARD["ROWS"]),)](
        branch, residual, branch if masked_indices is None else masked_indices, weight, bias, seed,
        sums, output, rows, eps, drop_threshold(p), 1 / (1 - p), D=dim,
        WIDTH=triton.next_power_of_2(dim), DROP=p > 0, SELECTED=masked_indices is not None,
        **_FORWARD,
    )  # fmt: skip
    return sums, output


def parts(rows: int) -> int:
    """Return the number of parts in which `backward` writes sums over `rows`."""
    return min(_PROGRAMS, rows)


def backward(
    grad: Tensor,
    grad_2: Tensor | None,
    sums: Tensor,
    weight: Tensor,
    eps: float,
    p: float,
    seed: Tensor,
    d_sums: Tensor,
    masked_indices: Tensor | None = None,
    residual_rows: int | None = None,
) -> tuple[Tensor, Tensor]:
    """Compute the gradients of `residual` and `branch`.

    Args:
        grad: `[N, D]`, of the output.
        grad_2: `[N, D]`, added to it, or None.
        sums: the first result of `forward`, whose other arguments are the same here.
        d_sums: `[parts, 3 * D]` float32, written: parts of three sums over N, the gradients of
            weight and bias and the sum of the branch's gradient.
        masked_indices: as for `forward`.
        residual_rows: rows of `residual`, with `masked_indices`.
    """
    rows, dim = sums.shape
    d_branch = torch.empty_like(sums)
    d_residual = d_branch if p == 0 else torch.empty_like(sums)
    if masked_indices is not None:
        assert residual_rows is not None
        d_residual = sums.new_zeros(residual_rows, dim)
    programs = d_sums.size(0)
    _backward[(programs,)](
        grad, grad if grad_2 is None else grad_2, sums,
        sums if masked_indices is None else masked_indices, weight, seed,
        d_residual, d_branch, d_sums, rows, eps, drop_threshold(p), 1 / (1 - p), D=dim,
        WIDTH=triton.next_power_of_2(dim), BLOCKS=triton.cdiv(rows, programs), DROP=p > 0,
        TWO=grad_2 is not None, SELECTED=masked_indices is not None, num_warps=1,
    )  # fmt: skip
    return d_residual, d_branch
