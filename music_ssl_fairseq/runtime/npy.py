"""Read .npy files whose contents are not trusted: truncated, damaged, or not what they say.

`numpy.load` fails in a dozen ways on a damaged header. Here the header is read without executing
anything, and the size that it implies is compared with the file's.
"""

import os
from math import prod
from pathlib import Path
from tokenize import TokenError
from typing import BinaryIO, Literal, NamedTuple

import numpy as np
from numpy.lib import format as npy

from music_ssl_fairseq.errors import InputError

UNREADABLE: tuple[type[Exception], ...] = (
    ValueError, EOFError, SyntaxError, TokenError, TypeError, KeyError,
    MemoryError, RecursionError, OverflowError,
)  # fmt: skip
"""What numpy and `ast.literal_eval` raise on damaged headers."""

_HEADERS = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}
_ZIP = b"PK\x03\x04"


class ArrayHeader(NamedTuple):
    """The header of a .npy file; values begin at byte `begin`."""

    shape: tuple[int, ...]
    dtype: np.dtype
    begin: int
    fortran_order: bool = False

    @property
    def size(self) -> int:
        """Bytes of the whole file."""
        return self.begin + prod(self.shape) * self.dtype.itemsize


def write_header(file: BinaryIO, dtype: np.dtype, shape: tuple[int, ...]) -> int:
    """Begin a .npy file; return the byte at which its values begin."""
    header = {"descr": npy.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
    npy.write_array_header_1_0(file, header)
    return file.tell()


def read_header(file: BinaryIO) -> ArrayHeader | None:
    """Read the header of an open .npy file of plain numbers in C order; None if it has none."""
    header = _parsed(file)
    return None if header is None or header.fortran_order or header.dtype.hasobject else header


def header_of(path: Path) -> ArrayHeader | None:
    """Apply `read_header` to a file; None as well if there is no such file."""
    try:
        with path.open("rb") as file:
            return read_header(file)
    except (FileNotFoundError, IsADirectoryError):
        return None


def is_whole(path: Path, dtype: np.dtype, shape: tuple[int, ...]) -> bool:
    """Tell whether a file is a .npy file of this type and shape, and as long as that takes."""
    found = header_of(path)
    return (
        found is not None
        and (found.shape, found.dtype) == (shape, dtype)
        and path.stat().st_size == found.size
    )


def read_array(file: str | os.PathLike, way_out: str = "") -> np.memmap:
    """Map a .npy file for reading; `way_out` says what to do about one that cannot be used.

    Raises:
        InputError: if it is no whole .npy file of numbers or text.
    """
    try:
        with open(file, "rb") as handle:
            header = _parsed(handle)
            size = handle.seek(0, 2)
            handle.seek(0)
            archive = handle.read(4) == _ZIP
    except OSError as error:
        raise _unusable(file, error.strerror or str(error), way_out) from None
    if archive:
        raise InputError(f"{file}: several arrays, where one is wanted")
    if header is None:
        raise _unusable(file, "no header of a .npy file", way_out)
    if header.dtype.hasobject:
        raise _unusable(file, "pickled objects, which could run code", way_out)
    if size < header.size:
        raise _unusable(file, f"{size} bytes, and its header states {header.size}", way_out)
    order: Literal["C", "F"] = "F" if header.fortran_order else "C"
    return np.memmap(file, header.dtype, "r", header.begin, header.shape, order)


def _unusable(file: str | os.PathLike, reason: str, way_out: str) -> InputError:
    hint = f"; {way_out}" if way_out else ""
    return InputError(f"{os.fspath(file)}: not a .npy file that is whole ({reason}){hint}")


def _parsed(file: BinaryIO) -> ArrayHeader | None:
    try:
        shape, fortran_order, dtype = _HEADERS[npy.read_magic(file)](file)
    except UNREADABLE:
        return None
    plain = dtype.itemsize > 0 and all(length >= 0 for length in shape)
    return ArrayHeader(shape, dtype, file.tell(), fortran_order) if plain else None
