"""What our Triton kernels compute with: cheap GELU and cheap random masks."""

import os

import triton
import triton.language as tl

if os.environ.get("TRITON_INTERPRET") == "1":

    @triton.jit
    def exp2(x):
        """2 to the power of `x`."""
        return tl.exp2(x)

    @triton.jit
    def reciprocal(x):
        """1 / `x`."""
        return 1.0 / x

    def loop_count(x):
        """`x` as `range` takes it: the interpreter's numbers are arrays, which it does not."""
        return x.handle.data.item()

else:

    @triton.jit
    def exp2(x):
        """2 to the power of `x` in one instruction; results below 1e-38 are 0."""
        return tl.inline_asm_elementwise(
            "ex2.approx.ftz.f32 $0, $1;", "=f,f", [x], dtype=tl.float32, is_pure=True, pack=1
        )

    @triton.jit
    def reciprocal(x):
        """1 / `x` in one instruction, off by one unit in the last place."""
        return tl.inline_asm_elementwise(
            "rcp.approx.ftz.f32 $0, $1;", "=f,f", [x], dtype=tl.float32, is_pure=True, pack=1
        )

    @triton.jit
    def loop_count(x):
        """`x` as `range` takes it."""
        return x


@triton.jit
def gelu_parts(u):
    """GELU of `u` and its derivative.

    The error function is Abramowitz and Stegun's 7.1.26, off by 1.5e-7 at most: a rounding error of
    float32. Its exponential is the derivative's too, which makes these kernels half as long.
    """
    t = reciprocal(1.0 + 0.231641888 * tl.abs(u))  # 0.3275911 / sqrt(2)
    bell = exp2(u * u * -0.7213475204444817)  # log2(e) / 2
    tail = t * (0.127414796 + t * (-0.142248368 + t * (0.7107068705 + t * (-0.7265760135 + t * 0.5307027145)))) * bell  # noqa: E501  # fmt: skip
    cdf = tl.where(u >= 0, 1.0 - tail, tail)
    return u * cdf, cdf + u * (0.3989422804014327 * bell)


@triton.jit
def halves(x):
    """The left and the right half of a matrix: threads keep what they hold."""
    return x.reshape(x.shape[0], 2, x.shape[1] // 2).permute(0, 2, 1).split()


@triton.jit
def scramble(index, seed):
    """`modules.dropout.scramble`."""
    h = (index ^ seed) * -1640531535  # 0x9E3779B1
    h = (h ^ ((h >> 16) & 0xFFFF)) * -2048144789  # 0x85EBCA6B
    return (h ^ ((h >> 13) & 0x7FFFF)) * -1028477387  # 0xC2B2AE35


@triton.jit
def kept(index, seed, threshold):
    """`modules.dropout.keep_mask`."""
    return scramble(index, seed) >= threshold


@triton.jit
def kept_pairs(row, column, threshold):
    """`modules.dropout.keep_pairs` of scrambled rows and columns, spread out to meet."""
    return (row ^ column) * -1640531535 >= threshold
