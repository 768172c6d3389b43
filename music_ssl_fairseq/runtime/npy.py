""".npy files whose contents are not trusted: they may be cut off, damaged, or not what they say.

`numpy.load` maps a file that is too short as if it were whole, and fails in a dozen ways on a
damaged header.
"""

from math import prod
from pathlib import Path
from tokenize import TokenError
from typing import BinaryIO, NamedTuple

import numpy as np
from numpy.lib import format as npy

UNREADABLE: tuple[type[Exception], ...] = (
    *(ValueError, EOFError, SyntaxError, TokenError, TypeError, KeyError),
    *(MemoryError, RecursionError, OverflowError),
)
"""What numpy and `ast.literal_eval` raise on damaged headers."""


class Header(NamedTuple):
    """What the beginning of a .npy file says; values begin at byte `begin`."""

    shape: tuple[int, ...]
    dtype: np.dtype
    begin: int

    @property
    def size(self) -> int:
        """Bytes that the whole file takes."""
        return self.begin + prod(self.shape) * self.dtype.itemsize


def write_header(file: BinaryIO, dtype: np.dtype, shape: tuple[int, ...]) -> int:
    """Begin a .npy file; where its values begin."""
    header = {"descr": npy.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
    npy.write_array_header_1_0(file, header)
    return file.tell()


def read_header(file: BinaryIO) -> Header | None:
    """The header of an open .npy file of plain numbers in C order; None if it has none."""
    try:
        if npy.read_magic(file) != (1, 0):
            return None
        shape, fortran_order, dtype = npy.read_array_header_1_0(file)
    except UNREADABLE:
        return None
    return None if fortran_order or dtype.hasobject else Header(shape, dtype, file.tell())


def header_of(path: Path) -> Header | None:
    """`read_header` of a file; None as well if there is no such file."""
    try:
        with path.open("rb") as file:
            return read_header(file)
    except (FileNotFoundError, IsADirectoryError):
        return None


def is_whole(path: Path, dtype: np.dtype, shape: tuple[int, ...]) -> bool:
    """Whether a file is a .npy file of this type and shape, and as long as that takes."""
    found = header_of(path)
    return (
        found is not None
        and (found.shape, found.dtype) == (shape, dtype)
        and path.stat().st_size == found.size
    )
