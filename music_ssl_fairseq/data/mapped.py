"""Map text files that are too large to load, and scan them in chunks."""

import mmap
import os
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import numpy as np

from music_ssl_fairseq.errors import InputError

CHUNK_BYTES = 1 << 22
"""Bytes scanned at once; the temporary arrays of a scan take about ten times this."""


def read_part(handle: IO[bytes], begin: int, count: int) -> bytes:
    """Read `count` bytes of an open file from `begin` on; processes may share the file.

    Raises:
        InputError: if they are no longer there, or cannot be read.
    """
    try:
        part = os.pread(handle.fileno(), count, begin)
    except OSError as error:
        raise InputError(f"{handle.name}: {error.strerror or error}") from None
    if len(part) < count:
        raise InputError(
            f"{handle.name}: it has been cut, to less than {begin + count} bytes, since it was "
            "opened: make it again, and run the same command to continue"
        )
    return part


class MappedFile:
    """The bytes of a file, read on demand; processes share the pages."""

    def __init__(self, file: Path):
        self.file = file
        self._map()

    def _map(self) -> None:
        self._handle = self.file.open("rb")
        descriptor = self._handle.fileno()
        empty = os.fstat(descriptor).st_size == 0
        # An empty file cannot be mapped.
        self._bytes = b"" if empty else mmap.mmap(descriptor, 0, access=mmap.ACCESS_READ)

    def __getstate__(self) -> dict:
        # A map cannot be pickled: a spawned worker maps the file again.
        return {"file": self.file}

    def __setstate__(self, state: dict) -> None:
        self.file = state["file"]
        self._map()

    def __len__(self) -> int:
        return len(self._bytes)

    def __getitem__(self, part: slice) -> bytes:
        """Read part of the file; through the map, one that has been cut would kill the process."""
        begin, end, _ = part.indices(len(self))
        return read_part(self._handle, begin, max(0, end - begin))

    def array(self) -> np.ndarray:
        """Return the file as a view, `[bytes]` uint8."""
        return np.frombuffer(self._bytes, np.uint8)

    def chunks(self) -> Iterator[tuple[int, np.ndarray]]:
        """Iterate over chunks of at most `CHUNK_BYTES`: (offset, `[bytes]` uint8 view)."""
        array = self.array()
        for offset in range(0, len(array), CHUNK_BYTES):
            yield offset, array[offset : offset + CHUNK_BYTES]
