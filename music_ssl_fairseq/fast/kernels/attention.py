"""Triton kernels of self-attention over a few hundred frames, with dropout.

The backward pass is two kernels, one for a block of queries and one for a block of keys, and each
computes the scores again: less than to keep them, or to add up parts of gradients in memory. A
single kernel that holds a head whole computes them once, but leaves a multiprocessor with few
programs: 353 us against 291 (one layer of 100 crops of 5 s, H200). Queries, keys and values come as
the one product that computes them, and their gradients leave as one, ready for the next, together
with their sums, the gradient of the biases.

Where only some frames of the output are wanted, only these ask: their queries are gathered on the
way in, and their gradients go back to where they came from.
"""

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from music_ssl_fairseq.fast.frame_selection import ChosenFrames
from music_ssl_fairseq.fast.hashed_dropout import drop_threshold
from music_ssl_fairseq.fast.kernels.elementwise import (
    exp2,
    kept_pairs,
    loop_count,
    reciprocal,
    scramble,
)

LONGEST = 256
"""Frames for which these are meant: for many more, libraries' kernels are."""

_ROWS = 64  # queries of a program of the forward pass; queries, or keys, of the backward pass
# Measured: the fastest of 15 each on an H200.
_FORWARD = {"KEYS": 64, "num_warps": 4, "num_stages": 3}
_BACKWARD = {"OTHERS": 32, "num_warps": 4, "num_stages": 3}


@triton.jit
def _rows(i, inside, row, pointer, D: tl.constexpr):
    """Load rows `i` `[BLOCK]` of `D` numbers, zeros for those that are not `inside`."""
    where = pointer + i[:, None] * row + tl.arange(0, D)[None, :]
    return tl.load(where, mask=inside[:, None], other=0.0)


@triton.jit
def _store_rows(x, i, inside, row, pointer, D: tl.constexpr):
    where = pointer + i[:, None] * row + tl.arange(0, D)[None, :]
    tl.store(where, x.to(pointer.dtype.element_ty), mask=inside[:, None])


@triton.jit
def _queries(rows, starts, crop, frames, CHOSEN: tl.constexpr):
    """Where the queries of a crop begin among those of all crops, and how many there are."""
    if CHOSEN:
        first = tl.load(starts + crop)
        count = tl.load(starts + crop + 1) - first
        return first.to(tl.int64), count
    else:
        return crop * frames, frames


@triton.jit
def _frames(rows, first, crop, frames, n, count, CHOSEN: tl.constexpr):
    """Which frames of the crop its queries `n` are."""
    if CHOSEN:
        return tl.load(rows + first + n, mask=n < count, other=0) - (crop * frames).to(tl.int32)
    else:
        return n


@triton.jit
def _forward(
    qkv, rows, starts, output, logs, seeds, frames, padded, heads, scale, threshold, factor,
    D: tl.constexpr, BLOCK: tl.constexpr, KEYS: tl.constexpr, BLOCKS: tl.constexpr,
    DROP: tl.constexpr, CHOSEN: tl.constexpr,
):  # fmt: skip
    program = tl.program_id(1)
    crop, head = (program // heads).to(tl.int64), program % heads
    row, width = 3 * heads * D, heads * D
    queries = qkv + crop * frames * row + head * D
    first_query, count = _queries(rows, starts, crop, frames, CHOSEN)
    start = tl.program_id(0) * BLOCK
    if CHOSEN and start >= count:
        return
    n = start + tl.arange(0, BLOCK)
    i = _frames(rows, first_query, crop, frames, n, count, CHOSEN)
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


@triton.jit
def _backward_queries(
    qkv, rows, starts, output, d_output, logs, levels, hashes, gathered, d_qkv, d_bias, seeds,
    frames, padded, heads, scale, root, threshold, factor, D: tl.constexpr, BLOCK: tl.constexpr,
    OTHERS: tl.constexpr, BLOCKS: tl.constexpr, DROP: tl.constexpr, CHOSEN: tl.constexpr,
):  # fmt: skip
    # Queries, keys and values beyond the end are zeros, and so is all that they add to others.
    # What dropout keeps is multiplied by its factor at the end, once for a row of sums.
    program = tl.program_id(1)
    crop, head = (program // heads).to(tl.int64), program % heads
    row, width = 3 * heads * D, heads * D
    queries = qkv + crop * frames * row + head * D
    sums = d_bias + (crop * tl.num_programs(0) + tl.program_id(0)) * row + head * D
    first_query, count = _queries(rows, starts, crop, frames, CHOSEN)
    start = tl.program_id(0) * BLOCK
    if CHOSEN and start >= count:
        tl.store(sums + tl.arange(0, D), tl.zeros((D,), tl.float32))
        return
    n = start + tl.arange(0, BLOCK)
    i = _frames(rows, first_query, crop, frames, n, count, CHOSEN)
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
    if CHOSEN:
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


@triton.jit
def _backward_keys(
    qkv, rows, starts, d_output, logs, levels, hashes, gathered, d_qkv, d_bias, seeds, frames,
    padded, heads, scale, root, threshold, factor, D: tl.constexpr, BLOCK: tl.constexpr,
    OTHERS: tl.constexpr, BLOCKS: tl.constexpr, DROP: tl.constexpr, CHOSEN: tl.constexpr,
):  # fmt: skip
    # Scores lie with a key a row here, as the products for keys and values want them.
    program = tl.program_id(1)
    crop, head = (program // heads).to(tl.int64), program % heads
    row, width = 3 * heads * D, heads * D
    queries = qkv + crop * frames * row + head * D
    first_query, count = _queries(rows, starts, crop, frames, CHOSEN)
    d_output += first_query * width + head * D
    d_queries = d_qkv + crop * frames * row + head * D
    # Chosen queries have been gathered: their frames would be one load before another.
    own_queries, own_row = queries, row
    if CHOSEN:
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
    for block in range(loop_count(tl.cdiv(count, OTHERS)) if CHOSEN else BLOCKS):
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
    """Of scores to powers of 2; and dropout's threshold and factor."""
    return math.log2(math.e) / math.sqrt(dim), drop_threshold(p), 1 / (1 - p)


def _pointers(chosen: ChosenFrames | None, qkv: Tensor) -> tuple[Tensor, Tensor]:
    """What kernels are given; if all frames are wanted they do not look."""
    return (qkv, qkv) if chosen is None else (chosen.rows, chosen.starts)


def forward(
    qkv: Tensor, heads: int, p: float, seed: Tensor, chosen: ChosenFrames | None = None
) -> tuple[Tensor, Tensor]:
    """Attention of every frame of a crop, or of chosen ones, to all of them.

    Args:
        qkv: `[B, T, 3 * D]`, queries, keys and values, each of all heads.
        heads: number of them, each 16, 32 or 64 wide.
        p: dropout of the attention weights; 0 for none.
        seed: int32, 0-d.
        chosen: N frames, or None for all.

    Returns:
        `[B, T, D]`, or `[N, D]` for chosen frames; and for the backward pass the binary logarithms
        of what the weights were divided by, `[B * heads, T]` with T rounded up to whole blocks.
    """
    batch, frames, triple = qkv.shape
    width = triple // 3
    shape = (batch, frames) if chosen is None else (len(chosen.rows),)
    output = qkv.new_empty(*shape, width)
    padded = triton.cdiv(frames, _ROWS) * _ROWS
    logs = qkv.new_empty(batch * heads, padded, dtype=torch.float32)
    scale, threshold, factor = _scales(width // heads, p)
    _forward[(padded // _ROWS, batch * heads)](
        qkv, *_pointers(chosen, qkv), output, logs, seed, frames, padded, heads, scale, threshold,
        factor, D=width // heads, BLOCK=_ROWS, BLOCKS=triton.cdiv(frames, _FORWARD["KEYS"]),
        DROP=p > 0, CHOSEN=chosen is not None, **_FORWARD,
    )  # fmt: skip
    return output, logs


def parts(batch: int, frames: int) -> int:
    """How many parts of a sum `backward` writes."""
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
    chosen: ChosenFrames | None = None,
) -> Tensor:
    """Gradient of `qkv` `[B, T, 3 * D]`.

    Args:
        qkv: as for `forward`; `output` and `logs` are its results.
        d_output: the gradient of its output.
        d_bias: `[parts, 3 * D]` float32 (`parts`), where parts of its sum over crops and frames go.
        chosen: as for `forward`.
    """
    batch, frames, triple = qkv.shape
    width = triple // 3
    d_qkv = torch.empty_like(qkv)
    if chosen is not None:
        d_qkv[..., :width].zero_()  # queries of frames that are not chosen
    padded = logs.size(1)
    levels, hashes = torch.empty_like(logs), torch.empty_like(logs, dtype=torch.int32)
    gathered = qkv if chosen is None else torch.empty_like(output)
    scale, threshold, factor = _scales(width // heads, p)
    scales = (scale, 1 / math.sqrt(width // heads), threshold, factor)
    pointers = _pointers(chosen, qkv)
    grid = (padded // _ROWS, batch * heads)
    more = {
        "D": width // heads,
        "BLOCK": _ROWS,
        "BLOCKS": triton.cdiv(frames, _BACKWARD["OTHERS"]),
        "DROP": p > 0,
        "CHOSEN": chosen is not None,
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
