"""A Triton kernel that sums the rows of several matrices in one launch.

Kernels that pass over all frames leave the sums for biases in parts, one per program. Summing these
takes one or two microseconds, and ten with a launch of its own: a layer has four such sums.
"""

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from music_ssl_fairseq.fast.kernels.launch import Kernel

# Programs are few and bound by latency, one per block: so blocks are large, 32 KB.
_BLOCK = {"ROWS": 256, "COLUMNS": 32, "num_warps": 8}


@Kernel
@triton.jit
def _sum_rows(
    parts, output, rows_0, rows_1, rows_2, rows_3, width_0, width_1, width_2, width_3,
    BLOCKS: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    program = tl.program_id(0)
    # The program's matrix, where that begins among the parts, and its block of columns.
    end_0 = tl.cdiv(width_0, COLUMNS)
    end_1 = end_0 + tl.cdiv(width_1, COLUMNS)
    end_2 = end_1 + tl.cdiv(width_2, COLUMNS)
    first_1 = rows_0 * width_0
    first_2 = first_1 + rows_1 * width_1
    first_3 = first_2 + rows_2 * width_2
    in_0, in_1, in_2 = program < end_0, program < end_1, program < end_2
    rows = tl.where(in_0, rows_0, tl.where(in_1, rows_1, tl.where(in_2, rows_2, rows_3)))
    width = tl.where(in_0, width_0, tl.where(in_1, width_1, tl.where(in_2, width_2, width_3)))
    first = tl.where(in_0, 0, tl.where(in_1, first_1, tl.where(in_2, first_2, first_3)))
    begin = tl.where(in_0, 0, tl.where(in_1, end_0, tl.where(in_2, end_1, end_2)))
    column = (program - begin) * COLUMNS + tl.arange(0, COLUMNS)
    total = tl.zeros((ROWS, COLUMNS), tl.float32)
    for block in range(BLOCKS):
        row = block * ROWS + tl.arange(0, ROWS)[:, None]
        inside = (row < rows) & (column[None, :] < width)
        total += tl.load(parts + first + row * width + column[None, :], mask=inside, other=0.0)
    place = output + program * COLUMNS + tl.arange(0, COLUMNS)
    tl.store(place, tl.sum(total, 0))


def allocate(shapes: Sequence[tuple[int, int]], like: Tensor) -> tuple[Tensor, list[Tensor]]:
    """Allocate four float32 matrices in one piece.

    Args:
        shapes: rows and columns of each.
        like: a tensor on the device.

    Returns:
        The whole piece, for `sum_rows`; and the matrices.
    """
    sizes = [rows * columns for rows, columns in shapes]
    whole = torch.empty(sum(sizes), dtype=torch.float32, device=like.device)
    matrices = [part.view(s) for part, s in zip(whole.split(sizes), shapes, strict=True)]
    return whole, matrices


def sum_rows(whole: Tensor, shapes: Sequence[tuple[int, int]]) -> list[Tensor]:
    """Sum over the rows of the matrices of `allocate`: `[columns]` float32 each."""
    rows, widths = zip(*shapes, strict=True)
    blocks = [triton.cdiv(width, _BLOCK["COLUMNS"]) for width in widths]
    output = torch.empty(sum(blocks), _BLOCK["COLUMNS"], dtype=torch.float32, device=whole.device)
    most = triton.cdiv(max(rows), _BLOCK["ROWS"])
    _sum_rows[(sum(blocks),)](whole, output, *rows, *widths, BLOCKS=most, **_BLOCK)
    found = zip(output.split(blocks), widths, strict=True)
    return [part.view(-1)[:width] for part, width in found]
