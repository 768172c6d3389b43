"""Files of a store that are read and written row by row: an array, and checksums of tracks.

Not through a memory map: there, a full disk or a truncated file kills the process without a
message.
"""

from collections.abc import Iterable
from hashlib import blake2b
from pathlib import Path

import numpy as np

from music_ssl_fairseq.runtime.files import atomic_path
from music_ssl_fairseq.runtime.npy import whole_array, write_header

_BLOCK_BYTES = 1 << 20


class RowFile:
    """A .npy file `[rows, ...]` that has its full size from the beginning.

    Such a file is kept, and any other made anew. Rows that were not written yet have the value
    `fill`.
    """

    def __init__(self, path: Path, dtype: np.dtype, shape: tuple[int, ...], fill: float):
        self._empty = np.full(shape[1:], fill, dtype)
        self._size = self._empty.nbytes
        found = whole_array(path)
        if found is not None and (found.shape, found.dtype) == (shape, dtype):
            self._begin = found.offset
        else:
            with atomic_path(path) as temporary, temporary.open("wb") as file:
                self._begin = write_header(file, dtype, shape)
                together = max(1, _BLOCK_BYTES // self._size)
                for first in range(0, shape[0], together):
                    file.write(self._empty.tobytes() * min(together, shape[0] - first))
        self._file = path.open("r+b")

    def __getitem__(self, row: int) -> bytes:
        self._file.seek(self._begin + row * self._size)
        return self._file.read(self._size)

    def __setitem__(self, row: int, values: np.ndarray) -> None:
        self._file.seek(self._begin + row * self._size)
        self._file.write(values.tobytes())
        self._file.flush()

    def clear(self, row: int) -> bool:
        """Write the fill value to a row; return whether it had another."""
        there = self[row] != self._empty.tobytes()
        if there:
            self[row] = self._empty
        return there

    def close(self) -> None:
        self._file.close()


CHECKSUMS = "checksums.npy"


class Checksums(RowFile):
    """The checksums of a store, on disk as soon as noted; `clear` is for an incomplete track.

    They depend on the `settings` that decide the features, as text.
    """

    def __init__(self, folder: Path, num_tracks: int, settings: str):
        self._key = blake2b(settings.encode(), digest_size=32).digest()
        super().__init__(folder / CHECKSUMS, np.dtype(np.uint64), (num_tracks, 2), 0)

    def of(self, parts: Iterable[bytes]) -> int:
        """Return the checksum of a track's features, given part by part; never 0."""
        found = blake2b(digest_size=8, key=self._key)
        for part in parts:
            found.update(part)
        return int.from_bytes(found.digest(), "little") or 1

    def noted(self, track: int) -> tuple[int, int]:
        """Return a track's checksum and time of last change; 0 and 0 if it is not complete."""
        checksum, changed = np.frombuffer(self[track], np.uint64).tolist()
        return checksum, changed

    def note(self, track: int, checksum: int, changed: int = 0) -> None:
        self[track] = np.array([checksum, changed], np.uint64)
