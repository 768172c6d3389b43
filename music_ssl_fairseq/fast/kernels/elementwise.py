"""Functions inside Triton kernels: inexpensive GELU and random masks."""

import os

import triton
import triton.language as tl

if os.environ.get("TRITON_INTERPRET") == "1":

    @triton.jit
    def exp2(x):
        """Return 2 to the power of `x`."""
        return tl.exp2(x)

    @triton.jit
    def reciprocal(x):
        """Return 1 / `x`."""
        return 1.0 / x

    def loop_count(x):
        """Return `x` for `range`, which does not take the interpreter's arrays."""
        return x.handle.data.item()

else:

    @triton.jit
    def exp2(x):
        """Return 2 to the power of `x`, one instruction; results below 1e-38 are 0."""
        return tl.inline_asm_elementwise(
            "ex2.approx.ftz.f32 $0, $1;", "=f,f", [x], dtype=tl.float32, is_pure=True, pack=1
        )

    @triton.jit
    def reciprocal(x):
        """Return 1 / `x`, one instruction, off by one unit in the last place."""
        return tl.inline_asm_elementwise(
            "rcp.approx.ftz.f32 $0, $1;", "=f,f", [x], dtype=tl.float32, is_pure=True, pack=1
        )

    @triton.jit
    def loop_count(x):
        """Return `x` for `range`."""
        return x


@triton.jit
def gelu_parts(u):
    """Return GELU of `u`, off by 8e-7 at most, and its derivative, off by 2.4e-6.

    With Q the normal distribution's tail and q its density, at a = |u| they are max(u, 0) - a Q
    and, for negative `u`, Q - a q. Here Q is 2 to the power of a polynomial, and Q - a q is Q times
    another (minimax fits): one exponential in all. A GPU computes one exponential or reciprocal in
    the time of eight multiplications, so the two of the usual formulas would take the most time.
    """
    a = tl.minimum(tl.abs(u), 8.0)  # where Q is 0, and the polynomials have not overflowed
    power = a * (a * (a * (a * (a * -0.000502202543 + 0.0072968984) - 0.052380845) - 0.4593741) - 1.15106845) - 1.0  # noqa: E501  # fmt: skip
    tail = exp2(power)
    ratio = a * (a * (a * (a * (a * -0.00172258192 + 0.02010471) - 0.108643785) - 0.637049735) - 0.797809362) + 1.0  # noqa: E501  # fmt: skip
    slope = tail * ratio
    # NaN stays NaN.
    above = tl.maximum(u, 0.0, propagate_nan=tl.PropagateNan.ALL)
    return above - a * tail, tl.where(u >= 0, 1.0 - slope, slope)


@triton.jit
def halves(x):
    """Return the left and the right half of a matrix, without moving data between threads."""
    return x.reshape(x.shape[0], 2, x.shape[1] // 2).permute(0, 2, 1).split()


@triton.jit
def scramble(index, seed):
    """Compute `hashed_dropout.scramble`."""
    h = (index ^ seed) * -1640531535  # 0x9E3779B1
    h = (h ^ ((h >> 16) & 0xFFFF)) * -2048144789  # 0x85EBCA6B
    return (h ^ ((h >> 13) & 0x7FFFF)) * -1028477387  # 0xC2B2AE35


@triton.jit
def kept(index, seed, threshold):
    """Compute `hashed_dropout.keep_mask`."""
    return scramble(index, seed) >= threshold


@triton.jit
def kept_pairs(row, column, threshold):
    """Return a matrix's mask from scrambled numbers of rows and columns that broadcast."""
    return (row ^ column) * -1640531535 >= threshold
