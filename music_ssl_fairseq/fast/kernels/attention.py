"""Triton kernels of self-attention over a few hundred frames, with dropout.

The backward pass is two kernels, one per block of queries and one per block of keys. Each computes
the scores again, which costs less than to keep them, or to sum parts of gradients in memory. A
single kernel that holds a whole head computes them once, but keeps multiprocessors less busy: 353
us against 291 (one layer of 100 crops of 5 s, H200). Queries, keys and values come as the one
product that computes them. Their gradients leave as one, with their sums, the gradient of the
biases.

With a `FrameSelection`, only these frames have queries: they are gathered as they are loaded, and
their gradients are scattered as they are stored.
"""

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from music_ssl_fairseq.fast.frame_selection import FrameSelection
from music_ssl_fairseq.fast.hashed_dropout import drop_threshold
from music_ssl_fairseq.fast.kernels.elementwise import (
    exp2,
    kept_pairs,
    loop_count,
    reciprocal,
    scramble,
)
from music_ssl_fairseq.fast.kernels.launch import Kernel

MAX_FRAMES = 256
"""Frames per crop: for longer crops, torch's attention is faster."""

_ROWS = 64  # per program: queries in the forward pass, queries or keys in the backward pass
# The fastest of 15 measured on an H200.
_FORWARD = {"KEYS": 64, "num_warps": 4, "num_stages": 3}
_BACKWARD = {"OTHERS": 32, "num_warps": 4, "num_stages": 3}


@triton.jit
def _rows(i, inside, row, pointer, D: tl.constexpr):
    """Load rows `i` `[BLOCK]` of `D` numbers; zeros for rows not `inside`."""
    where = pointer + i[:, None] * row + tl.arange(0, D)[None, :]
    return tl.load(where, mask=inside[:, None], other=0.0)


@triton.jit
def _store_rows(x, i, inside, row, pointer, D: tl.constexpr):
    where = pointer + i[:, None] * row + tl.arange(0, D)[None, :]
    tl.store(where, x.to(pointer.dtype.element_ty), mask=inside[:, None])


@triton.jit
def _queries(indices, starts, crop, frames, SELECTED: tl.constexpr):
    """Return where a crop's queries begin among those of all crops, and their number."""
    if SELECTED:
        first = tl.load(starts + crop)
        count = tl.load(starts + crop + 1) - first
        return first.to(tl.int64), count
    else:
        return crop * frames, frames


@triton.jit
def _frames(indices, first, crop, frames, n, count, SELECTED: tl.constexpr):
    """Return the frames of the crop that its queries `n` stand for."""
    if SELECTED:
        return tl.load(indices + first + n, mask=n < count, other=0) - (crop * frames).to(tl.int32)
    else:
        return n


@Kernel
@triton.jit(do_not_specialize_on_alignment=["seeds"])
def _forward(
    qkv, indices, starts, output, logs, seeds, frames, padded, heads, scale, threshold, factor,
    D: tl.constexpr, BLOCK: tl.constexpr, KEYS: tl.constexpr, BLOCKS: tl.constexpr,
    DROP: tl.constexpr, SELECTED: tl.constexpr,
):  # fmt: skip
    program = tl.program_id(1)
    crop, head = (program // heads).to(tl.int64), program % heads
    row, width = 3 * heads * D, heads * D
    queries = qkv + crop * frames * row + head * D
    first_query, count = _queries(indices, starts, crop, frames, SELECTED)
    start = tl.program_id(0) * BLOCK
    if SELECTED and start >= count:
        return
    n = start + tl.arange(0, BLOCK)
    i = _frames(indices, first_query, crop, frames, n, count, SELECTED)
    q = _rows(i, n < count, row, queries, D)
    seed = tl.load(seeds)
    row_hash = scramble(program * frames + i, seed)[:, None]
    top = tl.full((BLOCK,), -float("inf"), tl.float32)
    total = tl.zeros((BLOCK,), tl.float32)
    y = tl.zeros((BLOCK, D), tl.float32)
    for block in range(BLOCKS):
        j = block * KEYS + tl.arange(0, KEYS)
        k = _rows(j, j < frames, row, queries + width, D)
        scores = tl.dot(q, tl.trans(k)) * scale
        scores = tl.where(j[None, :] < frames, scores, -float("inf"))
        new_top = tl.maximum(top, tl.max(scores, 1))
        p = exp2(scores - new_top[:, None])
        shrink = exp2(top - new_top)
        total = total * shrink + tl.sum(p, 1)
        if DROP:
            p = tl.where(kept_pairs(row_hash, scramble(~j, seed)[None, :], threshold), p, 0.0)
        v = _rows(j, j < frames, row, queries + 2 * width, D)
        y = tl.dot(p.to(v.dtype), v, y * shrink[:, None])
        top = new_top
    y = y * (factor * reciprocal(total))[:, None]
    _store_rows(y, n, n < count, width, output + first_query * width + head * D, D)
    tl.store(logs + program * padded + n, top + tl.log2(total))


@Kernel
@triton.jit(do_not_specialize_on_alignment=["seeds"])
def _backward_queries(
    qkv, indices, starts, output, d_output, logs, levels, hashes, gathered, d_qkv, d_bias, seeds,
    frames, padded, heads, scale, root, threshold, factor, D: tl.constexpr, BLOCK: tl.constexpr,
    OTHERS: tl.constexpr, BLOCKS: tl.constexpr, DROP: tl.constexpr, SELECTED: tl.constexpr,
):  # fmt: skip
    # Queries, keys and values beyond the end are zeros, and add zeros to sums.
    # Dropout's factor is multiplied in at the end, once per row of sums.
    program = tl.program_id(1)
    crop, head = (program // heads).to(tl.int64), program % heads
    row, width = 3 * heads * D, heads * D
    queries = qkv + crop * frames * row + head * D
    sums = d_bias + (crop * tl.num_programs(0) + tl.program_id(0)) * row + head * D
    first_query, count = _queries(indices, starts, crop, frames, SELECTED)
    start = tl.program_id(0) * BLOCK
    if SELECTED and start >= count:
        tl.store(sums + tl.arange(0, D), tl.zeros((D,), tl.float32))
        return
    n = start + tl.arange(0, BLOCK)
    i = _frames(indices, first_query, crop, frames, n, count, SELECTED)
    q = _rows(i, n < count, row, queries, D)
    y = _rows(n, n < count, width, output + first_query * width + head * D, D)
    dy = _rows(n, n < count, width, d_output + first_query * width + head * D, D)
    level = tl.sum(y.to(tl.float32) * dy.to(tl.float32), 1) / factor
    tl.store(levels + program * padded + n, level)
    log = tl.load(logs + program * padded + n)
    seed = tl.load(seeds)
    row_hash = scramble(program * frames + i, seed)
    if DROP:
        tl.store(hashes + program * padded + n, row_hash)
    if SELECTED:
        _store_rows(q, n, n < count, width, gathered + first_query * width + head * D, D)
    row_hash = row_hash[:, None]
    d_q = tl.zeros((BLOCK, D), tl.float32)
    for block in range(BLOCKS):
        j = block * OTHERS + tl.arange(0, OTHERS)
        k = _rows(j, j < frames, row, queries + width, D)
        v = _rows(j, j < frames, row, queries + 2 * width, D)
        p = exp2(tl.dot(q, tl.trans(k)) * scale - log[:, None])
        d_p = tl.dot(dy, tl.trans(v))
        if DROP:
            column_hash = scramble(~j, seed)[None, :]
            d_p = tl.where(kept_pairs(row_hash, column_hash, threshold), d_p, 0.0)
        d_q = tl.dot((p * (d_p - level[:, None])).to(k.dtype), k, d_q)
    d_q *= root * factor
    _store_rows(d_q, i, n < count, row, d_qkv + crop * frames * row + head * D, D)
    tl.store(sums + tl.arange(0, D), tl.sum(d_q, 0))


@Kernel
@triton.jit(do_not_specialize_on_alignment=["seeds"])
def _backward_keys(
    qkv, indices, starts, d_output, logs, levels, hashes, gathered, d_qkv, d_bias, seeds, frames,
    padded, heads, scale, root, threshold, factor, D: tl.constexpr, BLOCK: tl.constexpr,
    OTHERS: tl.constexpr, BLOCKS: tl.constexpr, DROP: tl.constexpr, SELECTED: tl.constexpr,
):  # fmt: skip
    # A program computes the gradients of some keys and values, in a loop over the crop's queries.
    # So scores are transposed here, with one row per key.
    program = tl.program_id(1)
    crop, head = (program // heads).to(tl.int64), program % heads
    row, width = 3 * heads * D, heads * D
    queries = qkv + crop * frames * row + head * D
    first_query, count = _queries(indices, starts, crop, frames, SELECTED)
    d_output += first_query * width + head * D
    d_queries = d_qkv + crop * frames * row + head * D
    # Selected queries have been gathered, because loads of indices before them cost time.
    own_queries, own_row = queries, row
    if SELECTED:
        own_queries, own_row = gathered + first_query * width + head * D, width
    j = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    k = _rows(j, j < frames, row, queries + width, D)
    v = _rows(j, j < frames, row, queries + 2 * width, D)
    seed = tl.load(seeds)
    column_hash = scramble(~j, seed)[:, None]
    logs += program * padded
    levels += program * padded
    hashes += program * padded
    d_k = tl.zeros((BLOCK, D), tl.float32)
    d_v = tl.zeros((BLOCK, D), tl.float32)
    for block in range(loop_count(tl.cdiv(count, OTHERS)) if SELECTED else BLOCKS):
        n = block * OTHERS + tl.arange(0, OTHERS)
        q = _rows(n, n < count, own_row, own_queries, D)
        dy = _rows(n, n < count, width, d_output, D)
        log = tl.load(logs + n)
        level = tl.load(levels + n)
        p = exp2(tl.dot(k, tl.trans(q)) * scale - log[None, :])
        d_p = tl.dot(v, tl.trans(dy))
        if DROP:
            keep = kept_pairs(tl.load(hashes + n)[None, :], column_hash, threshold)
            d_p = tl.where(keep, d_p, 0.0)
            d_v = tl.dot(tl.where(keep, p, 0.0).to(dy.dtype), dy, d_v)
        else:
            d_v = tl.dot(p.to(dy.dtype), dy, d_v)
        d_k = tl.dot((p * (d_p - level[None, :])).to(q.dtype), q, d_k)
    d_k = tl.where(j[:, None] < frames, d_k * (root * factor), 0.0)
    d_v = tl.where(j[:, None] < frames, d_v * factor, 0.0)
    _store_rows(d_k, j, j < frames, row, d_queries + width, D)
    _store_rows(d_v, j, j < frames, row, d_queries + 2 * width, D)
    sums = d_bias + (crop * tl.num_programs(0) + tl.program_id(0)) * row + head * D
    tl.store(sums + width + tl.arange(0, D), tl.sum(d_k, 0))
    tl.store(sums + 2 * width + tl.arange(0, D), tl.sum(d_v, 0))


def _scales(dim: int, p: float) -> tuple[float, int, float]:
    """Return the factor from scores to powers of 2, dropout's threshold and its factor."""
    return math.log2(math.e) / math.sqrt(dim), drop_threshold(p), 1 / (1 - p)


def _pointers(selection: FrameSelection | None, qkv: Tensor) -> tuple[Tensor, Tensor]:
    """Return the selection's pointers; without one, any tensor, which kernels do not read."""
    return (qkv, qkv) if selection is None else (selection.masked_indices, selection.starts)


def forward(
    qkv: Tensor, heads: int, p: float, seed: Tensor, selection: FrameSelection | None = None
) -> tuple[Tensor, Tensor]:
    """Compute attention to all frames of a crop, for all frames or selected ones.

    Args:
        qkv: `[B, T, 3 * D]`, queries, keys and values, each of all heads.
        heads: number of heads, each 16, 32 or 64 wide.
        p: dropout of the attention weights; 0 for none.
        seed: int32, 0-d.
        selection: N frames, or None for all.

    Returns:
        `[B, T, D]`, or `[N, D]` for a selection; and for the backward pass the binary logarithms of
        the softmax's denominators, `[B * heads, T]` with T rounded up to whole blocks.
    """
    batch, frames, triple = qkv.shape
    width = triple // 3
    shape = (batch, frames) if selection is None else (len(selection.masked_indices),)
    output = qkv.new_empty(*shape, width)
    padded = triton.cdiv(frames, _ROWS) * _ROWS
    logs = qkv.new_empty(batch * heads, padded, dtype=torch.float32)
    scale, threshold, factor = _scales(width // heads, p)
    _forward[(padded // _ROWS, batch * heads)](
        qkv, *_pointers(selection, qkv), output, logs, seed, frames, padded, heads, scale,
        threshold, factor, D=width // heads, BLOCK=_ROWS,
        BLOCKS=triton.cdiv(frames, _FORWARD["KEYS"]), DROP=p > 0,
        SELECTED=selection is not None, **_FORWARD,
    )  # fmt: skip
    return output, logs


def parts(batch: int, frames: int) -> int:
    """Return the number of parts in which `backward` writes a sum."""
    return batch * triton.cdiv(frames, _ROWS)


def backward(
    qkv: Tensor,
    output: Tensor,
    d_output: Tensor,
    logs: Tensor,
    heads: int,
    p: float,
    seed: Tensor,
    d_bias: Tensor,
    selection: FrameSelection | None = None,
) -> Tensor:
    """Compute the gradient of `qkv` `[B, T, 3 * D]`.

    Args:
        qkv: as for `forward`; `output` and `logs` are its results.
        d_output: gradient of the output.
        d_bias: `[parts, 3 * D]` float32, written: parts of the gradient's sum over all frames.
        selection: as for `forward`.
    """
    batch, frames, triple = qkv.shape
    width = triple // 3
    d_qkv = torch.empty_like(qkv)
    if selection is not None:
        d_qkv[..., :width].zero_()  # queries of frames that are not selected
    padded = logs.size(1)
    levels, hashes = torch.empty_like(logs), torch.empty_like(logs, dtype=torch.int32)
    gathered = qkv if selection is None else torch.empty_like(output)
    scale, threshold, factor = _scales(width // heads, p)
    scales = (scale, 1 / math.sqrt(width // heads), threshold, factor)
    pointers = _pointers(selection, qkv)
    grid = (padded // _ROWS, batch * heads)
    more = {
        "D": width // heads,
        "BLOCK": _ROWS,
        "BLOCKS": triton.cdiv(frames, _BACKWARD["OTHERS"]),
        "DROP": p > 0,
        "SELECTED": selection is not None,
        **_BACKWARD,
    }
    _backward_queries[grid](
        qkv, *pointers, output, d_output, logs, levels, hashes, gathered, d_qkv, d_bias, seed,
        frames, padded, heads, *scales, **more,
    )  # fmt: skip
    _backward_keys[grid](
        qkv, *pointers, d_output, logs, levels, hashes, gathered, d_qkv, d_bias, seed, frames,
        padded, heads, *scales, **more,
    )  # fmt: skip
    return d_qkv
