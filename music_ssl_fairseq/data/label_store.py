"""Read pseudo-labels: a `.km` file, or the memory map that the labeler writes beside it.

The text has one line per track, its units separated by spaces. `SPLIT.units.npy` holds all units of
the split, one track after the other; `SPLIT.offsets.npy`, `[tracks + 1]` int64, the place where
each track begins. There a label takes two bytes, where text takes up to five, and needs no parsing:
a thousand hours at 100 Hz take 720 MB, and a crop reads one page of it.
"""

import os
import re
import tempfile
from array import array
from pathlib import Path

import numpy as np

from music_ssl_fairseq.data.label_metadata import label_command
from music_ssl_fairseq.errors import InputError
from music_ssl_fairseq.runtime.files import FileParts
from music_ssl_fairseq.runtime.npy import read_array

_COMPARED_BYTES = 1 << 16
_MAX_LINE_BYTES = 1 << 28  # read at once; no track has as many labels
_NO_LABELS = re.compile(rb"[^0-9\s]")


class LabelStore:
    """The labels of a split; only requested parts are read.

    Attributes:
        file: the `.km` itself.
        counts: `[tracks]` int64 labels per track. A blank line is a track without labels.
    """

    def __init__(self, km_file: str | os.PathLike):
        """Open a label file. A text without a memory map is parsed whole, into a temporary file.

        Raises InputError if it is missing, or holds something other than numbers.
        """
        self.file = Path(km_file)
        if not self.file.is_file():
            raise InputError(
                f"{self.file}: no such label file; make it with `{label_command(self.file.parent)}`"
            )
        self._units = open_memmap(self.file) or _parsed(self.file)
        self.counts = self._units.counts

    def __getstate__(self) -> Path:
        return self.file  # a spawned worker opens it again

    def __setstate__(self, state: Path) -> None:
        self.__init__(state)  # type: ignore[misc]

    def __len__(self) -> int:
        """Return the number of tracks."""
        return len(self.counts)

    def units(self, track: int, first: int = 0, stop: int | None = None) -> np.ndarray:
        """Return the labels `[first, stop)` of a track, int64; to its end for None or beyond."""
        count = int(self.counts[track])
        stop = count if stop is None else min(stop, count)
        begin = int(self._units.offsets[track])
        return self._units.part(begin + first, begin + max(first, stop))


class _Units:
    """The units of all tracks in a file of numbers, one track after the other."""

    def __init__(self, file: Path, dtype: np.dtype, begin: int, offsets: np.ndarray):
        """Open the file, whose units begin at byte `begin`."""
        self._contents = FileParts(file)
        self._dtype = dtype
        self._begin = begin
        self.offsets = offsets  # `[tracks + 1]` int64 places where tracks begin, counted in units
        self.counts = np.diff(offsets)  # `[tracks]` int64 labels per track

    def part(self, first: int, stop: int) -> np.ndarray:
        """Return the units `[first, stop)` of all, int64."""
        size = self._dtype.itemsize
        part = self._contents.read(self._begin + first * size, (stop - first) * size)
        return np.frombuffer(part, self._dtype).astype(np.int64)


def memmap_files(km_file: Path) -> tuple[Path, Path]:
    """Return the files of a `.km`'s units and offsets."""
    return km_file.with_suffix(".units.npy"), km_file.with_suffix(".offsets.npy")


def open_memmap(km_file: Path) -> _Units | None:
    """Open the memory map of a `.km`.

    None if it is missing, is not the labeler's, or the text has changed since.
    """
    changed = km_file.stat().st_mtime_ns
    files = memmap_files(km_file)
    if not all(file.exists() and file.stat().st_mtime_ns >= changed for file in files):
        return None
    try:
        units, offsets = map(read_array, files)
    except InputError:
        return None
    if not (units.ndim == offsets.ndim == 1 and units.dtype.kind in "iu" and len(offsets)):
        return None
    ends = offsets[0], offsets[-1]
    if offsets.dtype != np.int64 or ends != (0, len(units)) or (np.diff(offsets) < 0).any():
        return None
    found = _Units(files[0], units.dtype, units.offset, np.array(offsets))
    return found if _is_of(found, km_file) else None


def _is_of(units: _Units, text: Path) -> bool:
    """Tell whether a text begins and ends with these units.

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
    count = int(units.offsets[-1])
    if max(len(first), len(last)) > count:
        return False
    try:
        return np.array_equal(
            np.array(first, np.int64), units.part(0, len(first))
        ) and np.array_equal(np.array(last, np.int64), units.part(count - len(last), count))
    except (ValueError, OverflowError):
        return False


def _parsed(km_file: Path) -> _Units:
    """Return the units of a text, as int64 in a temporary file whose name is removed here."""
    offsets = array("q", [0])
    with km_file.open("rb") as text, tempfile.NamedTemporaryFile() as numbers:
        lines = iter(lambda: text.readline(_MAX_LINE_BYTES), b"")
        for number, line in enumerate(lines, 1):
            if other := _NO_LABELS.search(line):
                found = line[other.start() :][:20].split()[0]
                raise InputError(
                    f"{km_file}, line {number}: expected cluster numbers separated by spaces, "
                    f"found {found!r}"
                )
            units = np.fromstring(line.strip(), np.int64, sep=" ")
            numbers.write(units.data)
            offsets.append(offsets[-1] + len(units))
        numbers.flush()
        return _Units(Path(numbers.name), np.dtype(np.int64), 0, np.array(offsets))
