"""Triton kernels of self-attention over a few hundred frames, with dropout.

Libraries' kernels are made for thousands of frames. Five seconds are 249, so that a program can
hold a head's queries and their gradients whole: the backward pass computes every score once, where
others do so twice or add up their parts in memory. Queries, keys and values come as the one
product that computes them, and their gradients leave as one, ready for the next, together with
their sums, the gradient of the biases.
"""

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from music_ssl_fairseq.modules.dropout import drop_threshold
from music_ssl_fairseq.modules.triton_math import exp2, kept_pairs, reciprocal, scramble

LONGEST = 256
"""Frames whose queries the backward pass can hold: two blocks."""

_FORWARD = {"BLOCK": 64, "KEYS": 64, "num_warps": 4, "num_stages": 3}
_BACKWARD = {"BLOCK": 128, "KEYS": 64, "num_warps": 8, "num_stages": 3}


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
    qkv, output, logs, seeds, frames, heads, scale, threshold, factor,
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
    tl.store(logs + tl.program_id(1) * frames + i, top + tl.log2(total), mask=i < frames)


@triton.jit
def _queries(
    start, queries, output, d_output, logs, frames, row, width,
    D: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """What a step needs of its queries: themselves, their gradient, and two sums of each."""
    i = start + tl.arange(0, BLOCK)
    q = _rows(start, frames, row, queries, D, BLOCK)
    y = _rows(start, frames, width, output, D, BLOCK)
    dy = _rows(start, frames, width, d_output, D, BLOCK)
    level = tl.sum(y.to(tl.float32) * dy.to(tl.float32), 1)
    return q, dy, level, tl.load(logs + i, mask=i < frames, other=0.0)


@triton.jit
def _step(
    q, dy, level, log, k, v, d_q, d_k, d_v, row_hash, column_hash, scale, threshold, factor,
    DROP: tl.constexpr,
):  # fmt: skip
    """Add what a block of queries and a block of keys mean for the gradients of each."""
    p = exp2(tl.dot(q, tl.trans(k)) * scale - log[:, None])
    d_p = tl.dot(dy, tl.trans(v))
    if DROP:
        keep = kept_pairs(row_hash, column_hash, threshold)
        d_p = tl.where(keep, d_p * factor, 0.0)
        d_v = tl.dot(tl.trans(tl.where(keep, p * factor, 0.0).to(dy.dtype)), dy, d_v)
    else:
        d_v = tl.dot(tl.trans(p.to(dy.dtype)), dy, d_v)
    d_scores = (p * (d_p - level[:, None])).to(q.dtype)
    d_k = tl.dot(tl.trans(d_scores), q, d_k)
    d_q = tl.dot(d_scores, k, d_q)
    return d_q, d_k, d_v


@triton.jit
def _backward(
    qkv, output, d_output, logs, d_qkv, d_bias, seeds, frames, heads, scale, root, threshold,
    factor, D: tl.constexpr, BLOCK: tl.constexpr, KEYS: tl.constexpr, BLOCKS: tl.constexpr,
    DROP: tl.constexpr, TWO: tl.constexpr,
):  # fmt: skip
    # Queries, keys and values beyond the end are zeros, and so is all that they add to others.
    program = tl.program_id(0)
    crop, head = (program // heads).to(tl.int64), program % heads
    row, width = 3 * heads * D, heads * D
    queries = qkv + crop * frames * row + head * D
    output += crop * frames * width + head * D
    d_output += crop * frames * width + head * D
    d_queries = d_qkv + crop * frames * row + head * D
    logs += program * frames
    seed = tl.load(seeds)
    i = program * frames + tl.arange(0, BLOCK)
    h0 = scramble(i, seed)[:, None]
    h1 = scramble(i + BLOCK, seed)[:, None]
    d = tl.arange(0, D)
    q0, dy0, level0, log0 = _queries(0, queries, output, d_output, logs, frames, row, width, D, BLOCK)  # noqa: E501  # fmt: skip
    d_q0 = tl.zeros((BLOCK, D), tl.float32)
    if TWO:
        q1, dy1, level1, log1 = _queries(BLOCK, queries, output, d_output, logs, frames, row, width, D, BLOCK)  # noqa: E501  # fmt: skip
        d_q1 = tl.zeros((BLOCK, D), tl.float32)
    sum_k = tl.zeros((D,), tl.float32)
    sum_v = tl.zeros((D,), tl.float32)
    for block in range(BLOCKS):
        first = block * KEYS
        j = first + tl.arange(0, KEYS)
        k = _rows(first, frames, row, queries + width, D, KEYS)
        v = _rows(first, frames, row, queries + 2 * width, D, KEYS)
        d_k = tl.zeros((KEYS, D), tl.float32)
        d_v = tl.zeros((KEYS, D), tl.float32)
        column_hash = scramble(~j, seed)[None, :]
        d_q0, d_k, d_v = _step(q0, dy0, level0, log0, k, v, d_q0, d_k, d_v, h0, column_hash, scale, threshold, factor, DROP)  # noqa: E501  # fmt: skip
        if TWO:
            d_q1, d_k, d_v = _step(q1, dy1, level1, log1, k, v, d_q1, d_k, d_v, h1, column_hash, scale, threshold, factor, DROP)  # noqa: E501  # fmt: skip
        d_k = tl.where(j[:, None] < frames, d_k * root, 0.0)
        d_v = tl.where(j[:, None] < frames, d_v, 0.0)
        _store_rows(d_k, first, frames, row, d_queries + width, D, KEYS)
        _store_rows(d_v, first, frames, row, d_queries + 2 * width, D, KEYS)
        sum_k += tl.sum(d_k, 0)
        sum_v += tl.sum(d_v, 0)
    _store_rows(d_q0 * root, 0, frames, row, d_queries, D, BLOCK)
    sum_q = tl.sum(d_q0, 0)
    if TWO:
        _store_rows(d_q1 * root, BLOCK, frames, row, d_queries, D, BLOCK)
        sum_q += tl.sum(d_q1, 0)
    sums = d_bias + crop * row + head * D + d
    tl.store(sums, sum_q * root)
    tl.store(sums + width, sum_k)
    tl.store(sums + 2 * width, sum_v)


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
        `[B, T, D]`; and for the backward pass the binary logarithms `[B * heads, T]` of what the
        weights were divided by.
    """
    batch, frames, triple = qkv.shape
    width = triple // 3
    output = qkv.new_empty(batch, frames, width)
    logs = qkv.new_empty(batch * heads, frames, dtype=torch.float32)
    scale, threshold, factor = _scales(width // heads, p)
    _forward[(triton.cdiv(frames, _FORWARD["BLOCK"]), batch * heads)](
        qkv, output, logs, seed, frames, heads, scale, threshold, factor,
        D=width // heads, BLOCKS=triton.cdiv(frames, _FORWARD["KEYS"]), DROP=p > 0, **_FORWARD,
    )  # fmt: skip
    return output, logs


def backward(
    qkv: Tensor, output: Tensor, d_output: Tensor, logs: Tensor, heads: int, p: float, seed: Tensor
) -> tuple[Tensor, Tensor]:
    """Gradient of `qkv` `[B, T, 3 * D]`, and its sum over crops and frames `[3 * D]` float32.

    Args:
        qkv: as for `forward`, of at most `LONGEST` frames; `output` and `logs` are its results.
        d_output: the gradient of its output.
    """
    batch, frames, triple = qkv.shape
    width = triple // 3
    d_qkv = torch.empty_like(qkv)
    d_bias = qkv.new_empty(batch, triple, dtype=torch.float32)
    scale, threshold, factor = _scales(width // heads, p)
    _backward[(batch * heads,)](
        qkv, output, d_output, logs, d_qkv, d_bias, seed, frames, heads, scale,
        1 / math.sqrt(width // heads), threshold, factor,
        D=width // heads, BLOCKS=triton.cdiv(frames, _BACKWARD["KEYS"]), DROP=p > 0,
        TWO=frames > _BACKWARD["BLOCK"], **_BACKWARD,
    )  # fmt: skip
    return d_qkv, d_bias.sum(0)
