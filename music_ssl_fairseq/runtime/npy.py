"""Read .npy files whose contents are not trusted: truncated, damaged, or not what they say.

numpy fails in a dozen ways on them, and some of its messages recommend to unpickle the file.
"""

import os
from pathlib import Path
from tokenize import TokenError
from typing import BinaryIO

import numpy as np
from numpy.lib import format as npy

from music_ssl_fairseq.errors import InputError

UNREADABLE: tuple[type[Exception], ...] = (
    ValueError, EOFError, SyntaxError, TokenError, TypeError, KeyError,
    MemoryError, RecursionError, OverflowError,
)  # fmt: skip
"""Errors of numpy and `ast.literal_eval` on damaged headers."""


def write_header(file: BinaryIO, dtype: np.dtype, shape: tuple[int, ...]) -> int:
    """Begin a .npy file; return the byte at which its values begin."""
    header = {"descr": npy.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
    npy.write_array_header_1_0(file, header)
    return file.tell()


def read_array(file: str | os.PathLike, way_out: str = "") -> np.memmap:
    """Map a .npy file for reading; `way_out` says what to do about one that cannot be used.

    Raises InputError if it is no whole .npy file of numbers or text.
    """
    reason = "damaged, cut, or more than one array of numbers"
    try:
        found = np.load(file, mmap_mode="r", allow_pickle=False)
        if isinstance(found, np.memmap):  # else an archive
            return found
    except OSError as error:
        reason = error.strerror or str(error)
    except UNREADABLE:
        pass
    hint = f"; {way_out}" if way_out else ""
    raise InputError(f"{os.fspath(file)}: not a .npy file that is whole ({reason}){hint}")


def whole_array(path: Path) -> np.memmap | None:
    """Map a .npy file in C order that ends with its last value; None for any other, or none."""
    try:
        found = read_array(path)
    except InputError:
        return None
    ends = path.stat().st_size == found.offset + found.nbytes
    return found if ends and found.flags.c_contiguous else None
