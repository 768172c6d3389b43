"""Record which tracks of a store are complete: a checksum of each, in a file beside them.

`checksums.npy`, `[tracks, 2]` uint64: a row has the checksum of a track's features and the time of
the last change of its file (0 where tracks share one), or zeros if the track is not complete.
Checksums depend on the settings of the extraction: features of others are never taken for these.
"""

from collections.abc import Iterable
from hashlib import blake2b
from pathlib import Path

import numpy as np

from music_ssl_fairseq.extract.row_file import RowFile

CHECKSUMS = "checksums.npy"


class Checksums(RowFile):
    """The checksums of a store, on disk as soon as noted; `clear` is for an incomplete track.

    Args:
        folder: of the store.
        num_tracks: of the manifest.
        settings: what decides the features, as text.
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
