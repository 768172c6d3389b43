"""Read pseudo-labels from the memory maps that the labeler writes beside the text.

`SPLIT.units.npy` holds all units of a split, one track after the other; `SPLIT.offsets.npy`,
`[tracks + 1]` int64, the place where each track begins. A label takes two bytes where text takes
up to five, and needs no index or parsing: a thousand hours at 100 Hz take 720 MB, and a crop reads
one page of it.
"""

from pathlib import Path
from typing import Any

import numpy as np

from music_ssl_fairseq.data.file_parts import FileParts
from music_ssl_fairseq.errors import InputError
from music_ssl_fairseq.runtime.npy import read_array

_COMPARED_BYTES = 1 << 16


class UnitMemmap:
    """The units of all tracks; `counts` are `[tracks]` int64 labels per track."""

    def __init__(self, km_file: Path):
        self._file = km_file
        self._open()

    def _open(self) -> None:
        units, offsets = memmap_files(self._file)
        self._contents = FileParts(units)
        self._units: Any = read_array(units)  # a np.memmap
        self._offsets = np.array(read_array(offsets))
        numbers = self._offsets.ndim == 1 and self._offsets.dtype == np.int64
        self.counts = np.diff(self._offsets) if numbers else np.zeros(0, np.int64)

    def __getstate__(self) -> dict:
        # A map would be pickled with its contents: a spawned worker maps the file again.
        return {"_file": self._file}

    def __setstate__(self, state: dict) -> None:
        self.__init__(state["_file"])  # type: ignore[misc]

    def agrees(self) -> bool:
        """Tell whether the two files belong together, and no track ends before it begins."""
        if not (self._offsets.ndim == self._units.ndim == 1 and len(self._offsets)):
            return False
        if self._units.dtype.kind not in "iu" or self._offsets.dtype != np.int64:
            return False
        whole = self._offsets[0] == 0 and self._offsets[-1] == len(self._units)
        return bool(whole and (self.counts >= 0).all())

    def units(self, track: int, first: int, stop: int) -> np.ndarray:
        """Return the labels `[first, stop)` of a track, int64."""
        begin = int(self._offsets[track])
        return self._part(begin + first, begin + stop)

    def _part(self, first: int, stop: int) -> np.ndarray:
        size = self._units.itemsize
        part = self._contents.read(self._units.offset + first * size, (stop - first) * size)
        return np.frombuffer(part, self._units.dtype).astype(np.int64)

    def is_of(self, text: Path) -> bool:
        """Tell whether a text begins and ends with the same labels.

        Another one may have come with an older time of change.
        """
        with text.open("rb") as file:
            size = file.seek(0, 2)
            file.seek(0)
            first = file.read(_COMPARED_BYTES).split()
            file.seek(max(0, size - _COMPARED_BYTES))
            last = file.read().split()
        if size > _COMPARED_BYTES:  # labels at the edges may be cut
            first, last = first[:-1], last[1:]
        count = len(self._units)
        if max(len(first), len(last)) > count:
            return False
        try:
            return np.array_equal(
                np.array(first, np.int64), self._part(0, len(first))
            ) and np.array_equal(np.array(last, np.int64), self._part(count - len(last), count))
        except (ValueError, OverflowError):
            return False


def memmap_files(km_file: Path) -> tuple[Path, Path]:
    """Return the files of a `.km`'s units and offsets."""
    return km_file.with_suffix(".units.npy"), km_file.with_suffix(".offsets.npy")


def open_unit_memmap(km_file: Path) -> UnitMemmap | None:
    """Open the memory map of a `.km`; None if there is none, or the text has changed since."""
    changed = km_file.stat().st_mtime_ns
    files = memmap_files(km_file)
    if not all(file.exists() and file.stat().st_mtime_ns >= changed for file in files):
        return None
    try:
        found = UnitMemmap(km_file)
    except InputError:  # not what the labeler writes: the text is there
        return None
    return found if found.agrees() and found.is_of(km_file) else None
