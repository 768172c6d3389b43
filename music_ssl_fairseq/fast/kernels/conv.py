"""A Triton kernel for Hopper GPUs: input gradient of the extractor's convolutions and GELUs.

The convolutions have kernel 3 and stride 2, and a row of zeros before each crop's first frame
(`conv_stack`). With taps W0, W1, W2, each `[Cout, Cin]`, row j of the output's gradient gives two
rows of the input's:

    even, 2j:      dz[j] W1
    odd,  2j + 1:  dz[j] W2 + dz[j + 1] W0

So the input's gradient, seen as `[B Q, 2 Cin]`, is two matrix products over all crops at once.
Where two crops meet, dz[j + 1] is the row before the next crop's frames, whose gradient is zero.
For the same reason the row before each crop's frames gets a gradient of zero.

GELU's derivative is multiplied in before a tile is written. This saves two of the five passes over
tensors of this size.
"""

import math

import triton
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from music_ssl_fairseq.fast.device import multiprocessors
from music_ssl_fairseq.fast.kernels.elementwise import gelu_parts, halves, loop_count
from music_ssl_fairseq.fast.kernels.launch import Kernel

# The fastest of 8 measured on an H100. One program fills a multiprocessor.
_TILE = {"M": 128, "N": 256, "K": 64, "num_warps": 8, "num_stages": 3}


@triton.jit
def _write(part, z, output, row, column):
    if z is not None:
        _, slope = gelu_parts(z.load([row, column]).to(tl.float32))
        part *= slope
    output.store([row, column], part.to(output.dtype))


@Kernel
@triton.jit
def _input_gradient(
    dz, weight, z, output, jobs, COUT: tl.constexpr, CIN: tl.constexpr, M: tl.constexpr,
    N: tl.constexpr, K: tl.constexpr,
):  # fmt: skip
    # A job is M rows and N input channels: their even tile, and then their odd one, which is twice
    # the work. Jobs of the same rows follow each other, so that these are read from memory once.
    # One loop runs through all products of a program's jobs, so that the next product's first tiles
    # are loaded while the last tile is written.
    STEPS: tl.constexpr = COUT // K
    programs = tl.num_programs(0)
    count = (jobs - tl.program_id(0) + programs - 1) // programs
    job = tl.program_id(0) - programs
    step, row, column = 3 * STEPS - 1, 0, 0
    total = tl.zeros((M, N), tl.float32)
    for _ in tl.range(loop_count(count * (3 * STEPS))):
        step = tl.where(step == 3 * STEPS - 1, 0, step + 1)
        if step == 0:
            job += programs
            row = job // (CIN // N) * M
            column = job % (CIN // N) * N
        odd = (step >= STEPS).to(tl.int32)
        tap = (step // STEPS + 1) % 3  # 1, 2, 0
        channel = step % STEPS * K
        a = dz.load([row + step // (2 * STEPS), channel])  # the row after this for tap 0
        b = weight.load([channel, tap * CIN + column])
        total = tl.dot(a, b, total)
        if (step == STEPS - 1) | (step == 3 * STEPS - 1):
            start = odd * CIN + column
            # One after the other, so that they share the same shared memory.
            left, right = halves(total)
            _write(left, z, output, row, start)
            _write(right, z, output, row, start + N // 2)
            total = tl.zeros((M, N), tl.float32)


def input_gradient(dz: Tensor, weight: Tensor, z_previous: Tensor | None) -> Tensor:
    """Compute the gradient of such a convolution's input, or of the input of the GELU before it.

    Args:
        dz: contiguous `[B, Q, Cout]`, the gradient of the output. Row 0 of each crop is zero.
        weight: `[Cout, Cin, 3]`. Not copied if it is laid out as `[Cout, 3, Cin]`, as cuDNN's.
        z_previous: contiguous `[B, 2 Q, Cin]` whose GELU is the input, except for row 0 of each
            crop, which may be anything finite. None if there is no GELU.

    Returns:
        `[B, 2 Q, Cin]`, zero in row 0 of each crop.
    """
    batch, length, outputs = dz.shape
    inputs = weight.size(1)
    d_input = dz.new_empty(batch, 2 * length, inputs)
    rows = batch * length
    tile = dict(_TILE, N=math.gcd(_TILE["N"], inputs), K=math.gcd(_TILE["K"], outputs))
    m, n, k = tile["M"], tile["N"], tile["K"]
    taps = weight.transpose(1, 2).contiguous().view(outputs, 3 * inputs)
    z = None
    if z_previous is not None:
        z = TensorDescriptor.from_tensor(z_previous.view(rows, 2 * inputs), [m, n // 2])
    jobs = triton.cdiv(rows, m) * (inputs // n)
    _input_gradient[(min(jobs, multiprocessors(dz.device)),)](
        TensorDescriptor.from_tensor(dz.view(rows, outputs), [m, k]),
        TensorDescriptor.from_tensor(taps, [k, n]),
        z,
        TensorDescriptor.from_tensor(d_input.view(rows, 2 * inputs), [m, n // 2]),
        jobs,
        COUT=outputs,
        CIN=inputs,
        **tile,
    )
    return d_input
