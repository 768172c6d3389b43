"""Text files that are too large to hold: mapped into memory, and scanned in pieces."""

import mmap
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np

CHUNK = 1 << 22
"""Bytes looked at at a time: the temporary arrays of a scan are some ten times this."""


class MappedFile:
    """The bytes of a file, read as they are needed; processes share the pages."""

    def __init__(self, file: Path):
        self.file = file
        self._map()

    def _map(self) -> None:
        with self.file.open("rb") as handle:
            empty = os.fstat(handle.fileno()).st_size == 0
            # An empty file cannot be mapped.
            self._bytes = b"" if empty else mmap.mmap(handle.fileno(), 0, access=mmap.ACCESS_READ)

    def __getstate__(self) -> dict:
        # A map cannot be pickled: a spawned worker maps the file again.
        return {"file": self.file}

    def __setstate__(self, state: dict) -> None:
        self.file = state["file"]
        self._map()

    def __len__(self) -> int:
        return len(self._bytes)

    def __getitem__(self, part: slice) -> bytes:
        return self._bytes[part]

    def array(self) -> np.ndarray:
        """`[bytes]` uint8, a view."""
        return np.frombuffer(self._bytes, np.uint8)

    def chunks(self) -> Iterator[tuple[int, np.ndarray]]:
        """Pieces of at most `CHUNK` bytes: (offset, `[bytes]` uint8 view)."""
        array = self.array()
        for offset in range(0, len(array), CHUNK):
            yield offset, array[offset : offset + CHUNK]

    def positions(self, character: str) -> np.ndarray:
        """`[occurrences]` int64 offsets of an ASCII character."""
        code = ord(character)
        found = [offset + np.flatnonzero(chunk == code) for offset, chunk in self.chunks()]
        return np.concatenate(found) if found else np.zeros(0, np.int64)
