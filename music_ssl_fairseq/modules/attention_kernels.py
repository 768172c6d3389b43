"""Triton kernels of self-attention over a few hundred frames, with dropout.

The backward pass is two kernels, one for a block of queries and one for a block of keys, and each
computes the scores again: less than to keep them, or to add up parts of gradients in memory. A
single kernel that holds a head whole computes them once, but leaves a multiprocessor with few
programs: 353 us against 291 (one layer of 100 crops of 5 s, H200). Queries, keys and values come as
the one product that computes them, and their gradients leave as one, ready for the next, together
with their sums, the gradient of the biases.
"""

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from music_ssl_fairseq.modules.dropout import drop_threshold
from music_ssl_fairseq.modules.triton_math import exp2, kept_pairs, reciprocal, scramble

LONGEST = 256
"""Frames for which these are meant: for many more, libraries' kernels are."""

_ROWS = 64  # queries of a program of the forward pass; queries, or keys, of the backward pass
# Measured: the fastest of 15 each on an H200.
_FORWARD = {"KEYS": 64, "num_warps": 4, "num_stages": 3}
_BACKWARD = {"OTHERS": 32, "num_warps": 4, "num_stages": 3}


@triton.jit
def _rows(start, frames, row, pointer, D: tl.constexpr, BLOCK: tl.constexpr):
    """Load rows `[BLOCK, D]` from `start` on, zeros beyond the end."""
    i = start + tl.arange(0, BLOCK)[:, None]
    return tl.load(pointer + i * row + tl.arange(0, D)[None, :], mask=i < frames, other=0.0)


@triton.jit
def _store_rows(x, start, frames, row, pointer, D: tl.constexpr, BLOCK: tl.constexpr):
    i = start + tl.arange(0, BLOCK)[:, None]
    where = pointer + i * row + tl.arange(0, D)[None, :]
    tl.store(where, x.to(pointer.dtype.element_ty), mask=i < frames)


@triton.jit
def _forward(
    qkv, output, logs, seeds, frames, padded, heads, scale, threshold, factor,
    D: tl.constexpr, BLOCK: tl.constexpr, KEYS: tl.constexpr, BLOCKS: tl.constexpr,
    DROP: tl.constexpr,
):  # fmt: skip
    crop, head = tl.program_id(1) // heads, tl.program_id(1) % heads
    row = 3 * heads * D
    queries = qkv + crop.to(tl.int64) * frames * row + head * D
    start = tl.program_id(0) * BLOCK
    i = start + tl.arange(0, BLOCK)
    q = _rows(start, frames, row, queries, D, BLOCK)
    seed = tl.load(seeds)
    row_hash = scramble(tl.program_id(1) * frames + i, seed)[:, None]
    top = tl.full((BLOCK,), -float("inf"), tl.float32)
    total = tl.zeros((BLOCK,), tl.float32)
    y = tl.zeros((BLOCK, D), tl.float32)
    for block in range(BLOCKS):
        first = block * KEYS
        j = first + tl.arange(0, KEYS)
        k = _rows(first, frames, row, queries + heads * D, D, KEYS)
        scores = tl.dot(q, tl.trans(k)) * scale
        scores = tl.where(j[None, :] < frames, scores, -float("inf"))
        new_top = tl.maximum(top, tl.max(scores, 1))
        p = exp2(scores - new_top[:, None])
        shrink = exp2(top - new_top)
        total = total * shrink + tl.sum(p, 1)
        if DROP:
            p = tl.where(kept_pairs(row_hash, scramble(~j, seed)[None, :], threshold), p, 0.0)
        v = _rows(first, frames, row, queries + 2 * heads * D, D, KEYS)
        y = tl.dot(p.to(v.dtype), v, y * shrink[:, None])
        top = new_top
    y = y * (factor * reciprocal(total))[:, None]
    width = heads * D
    _store_rows(y, start, frames, width, output + crop.to(tl.int64) * frames * width + head * D, D, BLOCK)  # noqa: E501  # fmt: skip
    tl.store(logs + tl.program_id(1) * padded + i, top + tl.log2(total))


@triton.jit
def _backward_queries(
    qkv, output, d_output, logs, levels, hashes, d_qkv, d_bias, seeds, frames, padded, heads, scale,
    root, threshold, factor, D: tl.constexpr, BLOCK: tl.constexpr, OTHERS: tl.constexpr,
    BLOCKS: tl.constexpr, DROP: tl.constexpr,
):  # fmt: skip
    # Queries, keys and values beyond the end are zeros, and so is all that they add to others.
    # What dropout keeps is multiplied by its factor at the end, once for a row of sums.
    program = tl.program_id(1)
    crop, head = (program // heads).to(tl.int64), program % heads
    row, width = 3 * heads * D, heads * D
    queries = qkv + crop * frames * row + head * D
    start = tl.program_id(0) * BLOCK
    i = start + tl.arange(0, BLOCK)
    q = _rows(start, frames, row, queries, D, BLOCK)
    y = _rows(start, frames, width, output + crop * frames * width + head * D, D, BLOCK)
    dy = _rows(start, frames, width, d_output + crop * frames * width + head * D, D, BLOCK)
    level = tl.sum(y.to(tl.float32) * dy.to(tl.float32), 1) / factor
    tl.store(levels + program * padded + i, level)
    log = tl.load(logs + program * padded + i)
    seed = tl.load(seeds)
    row_hash = scramble(program * frames + i, seed)
    if DROP:
        tl.store(hashes + program * padded + i, row_hash)
    row_hash = row_hash[:, None]
    d_q = tl.zeros((BLOCK, D), tl.float32)
    for block in range(BLOCKS):
        first = block * OTHERS
        k = _rows(first, frames, row, queries + width, D, OTHERS)
        v = _rows(first, frames, row, queries + 2 * width, D, OTHERS)
        p = exp2(tl.dot(q, tl.trans(k)) * scale - log[:, None])
        d_p = tl.dot(dy, tl.trans(v))
        if DROP:
            column_hash = scramble(~(first + tl.arange(0, OTHERS)), seed)[None, :]
            d_p = tl.where(kept_pairs(row_hash, column_hash, threshold), d_p, 0.0)
        d_q = tl.dot((p * (d_p - level[:, None])).to(k.dtype), k, d_q)
    d_q *= root * factor
    _store_rows(d_q, start, frames, row, d_qkv + crop * frames * row + head * D, D, BLOCK)
    sums = d_bias + (crop * tl.num_programs(0) + tl.program_id(0)) * row + head * D
    tl.store(sums + tl.arange(0, D), tl.sum(d_q, 0))


@triton.jit
def _backward_keys(
    qkv, d_output, logs, levels, hashes, d_qkv, d_bias, seeds, frames, padded, heads, scale, root,
    threshold, factor, D: tl.constexpr, BLOCK: tl.constexpr, OTHERS: tl.constexpr,
    BLOCKS: tl.constexpr, DROP: tl.constexpr,
):  # fmt: skip
    # Scores lie with a key a row here, as the products for keys and values want them.
    program = tl.program_id(1)
    crop, head = (program // heads).to(tl.int64), program % heads
    row, width = 3 * heads * D, heads * D
    queries = qkv + crop * frames * row + head * D
    d_output += crop * frames * width + head * D
    d_queries = d_qkv + crop * frames * row + head * D
    first = tl.program_id(0) * BLOCK
    j = first + tl.arange(0, BLOCK)
    k = _rows(first, frames, row, queries + width, D, BLOCK)
    v = _rows(first, frames, row, queries + 2 * width, D, BLOCK)
    seed = tl.load(seeds)
    column_hash = scramble(~j, seed)[:, None]
    logs += program * padded
    levels += program * padded
    hashes += program * padded
    d_k = tl.zeros((BLOCK, D), tl.float32)
    d_v = tl.zeros((BLOCK, D), tl.float32)
    for block in range(BLOCKS):
        start = block * OTHERS
        i = start + tl.arange(0, OTHERS)
        q = _rows(start, frames, row, queries, D, OTHERS)
        dy = _rows(start, frames, width, d_output, D, OTHERS)
        log = tl.load(logs + i)
        level = tl.load(levels + i)
        p = exp2(tl.dot(k, tl.trans(q)) * scale - log[None, :])
        d_p = tl.dot(v, tl.trans(dy))
        if DROP:
            keep = kept_pairs(tl.load(hashes + i)[None, :], column_hash, threshold)
            d_p = tl.where(keep, d_p, 0.0)
            d_v = tl.dot(tl.where(keep, p, 0.0).to(dy.dtype), dy, d_v)
        else:
            d_v = tl.dot(p.to(dy.dtype), dy, d_v)
        d_k = tl.dot((p * (d_p - level[None, :])).to(q.dtype), q, d_k)
    d_k = tl.where(j[:, None] < frames, d_k * (root * factor), 0.0)
    d_v = tl.where(j[:, None] < frames, d_v * factor, 0.0)
    _store_rows(d_k, first, frames, row, d_queries + width, D, BLOCK)
    _store_rows(d_v, first, frames, row, d_queries + 2 * width, D, BLOCK)
    sums = d_bias + (crop * tl.num_programs(0) + tl.program_id(0)) * row + head * D
    tl.store(sums + width + tl.arange(0, D), tl.sum(d_k, 0))
    tl.store(sums + 2 * width + tl.arange(0, D), tl.sum(d_v, 0))


def _scales(dim: int, p: float) -> tuple[float, int, float]:
    """Of scores to powers of 2; and dropout's threshold and factor."""
    return math.log2(math.e) / math.sqrt(dim), drop_threshold(p), 1 / (1 - p)


def forward(qkv: Tensor, heads: int, p: float, seed: Tensor) -> tuple[Tensor, Tensor]:
    """Attention of every frame of a crop to all of them.

    Args:
        qkv: `[B, T, 3 * D]`, queries, keys and values, each of all heads.
        heads: number of them, each 16, 32 or 64 wide.
        p: dropout of the attention weights; 0 for none.
        seed: int32, 0-d.

    Returns:
        `[B, T, D]`; and for the backward pass the binary logarithms of what the weights were
        divided by, `[B * heads, T]` with T rounded up to whole blocks.
    """
    batch, frames, triple = qkv.shape
    width = triple // 3
    output = qkv.new_empty(batch, frames, width)
    padded = triton.cdiv(frames, _ROWS) * _ROWS
    logs = qkv.new_empty(batch * heads, padded, dtype=torch.float32)
    scale, threshold, factor = _scales(width // heads, p)
    _forward[(padded // _ROWS, batch * heads)](
        qkv, output, logs, seed, frames, padded, heads, scale, threshold, factor,
        D=width // heads, BLOCK=_ROWS, BLOCKS=triton.cdiv(frames, _FORWARD["KEYS"]), DROP=p > 0,
        **_FORWARD,
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
) -> Tensor:
    """Gradient of `qkv` `[B, T, 3 * D]`.

    Args:
        qkv: as for `forward`; `output` and `logs` are its results.
        d_output: the gradient of its output.
        d_bias: `[parts, 3 * D]` float32 (`parts`), where parts of its sum over crops and frames go.
    """
    batch, frames, triple = qkv.shape
    width = triple // 3
    d_qkv = torch.empty_like(qkv)
    padded = logs.size(1)
    levels, hashes = torch.empty_like(logs), torch.empty_like(logs, dtype=torch.int32)
    scale, threshold, factor = _scales(width // heads, p)
    scales = (scale, 1 / math.sqrt(width // heads), threshold, factor)
    grid = (padded // _ROWS, batch * heads)
    more = {
        "D": width // heads,
        "BLOCK": _ROWS,
        "BLOCKS": triton.cdiv(frames, _BACKWARD["OTHERS"]),
        "DROP": p > 0,
        **_BACKWARD,
    }
    _backward_queries[grid](
        qkv, output, d_output, logs, levels, hashes, d_qkv, d_bias, seed, frames, padded, heads,
        *scales, **more,
    )  # fmt: skip
    _backward_keys[grid](
        qkv, d_output, logs, levels, hashes, d_qkv, d_bias, seed, frames, padded, heads, *scales,
        **more,
    )  # fmt: skip
    return d_qkv
