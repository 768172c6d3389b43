"""Read pseudo-labels from a `.km` file: one line per track, its units separated by spaces.

Where the labeler has written a memory map as well (`unit_memmap`), that is read instead.
"""

import os
import re
from array import array
from pathlib import Path

import numpy as np

from music_ssl_fairseq.data.file_parts import FileParts
from music_ssl_fairseq.data.label_metadata import label_command
from music_ssl_fairseq.data.unit_memmap import open_unit_memmap
from music_ssl_fairseq.errors import InputError

ANCHOR_STEP = 1024
"""Labels from one anchor, a known place, to the next: 8 bytes of index per 4 kB of text."""

_MAX_LINE_BYTES = 1 << 28  # read at once; no track has as many labels
_NO_LABELS = re.compile(rb"[^0-9\x01- ]")  # control characters count as spaces


class LabelStore:
    """The lines of a `.km` file; only requested parts are parsed.

    Attributes:
        file: the `.km` itself.
        counts: `[tracks]` int64 labels per track. A blank line is a track without labels.
    """

    def __init__(self, km_file: str | os.PathLike):
        """Index a label file, in one pass over it if there is no memory map.

        Raises:
            InputError: if it is missing, or holds something other than numbers.
        """
        self.file = Path(km_file)
        if not self.file.is_file():
            raise InputError(
                f"{self.file}: no such label file; make it with `{label_command(self.file.parent)}`"
            )
        self._text = FileParts(self.file)
        self._map = open_unit_memmap(self.file)
        if self._map is None:
            self._index()
        else:
            self.counts = self._map.counts

    def _index(self) -> None:
        """Note the number of labels of each line, and where parts of it begin and end."""
        counts, ends, first_anchors, anchors = (array("q") for _ in range(4))
        place = 0
        with self.file.open("rb") as handle:
            lines = iter(lambda: handle.readline(_MAX_LINE_BYTES), b"")
            for number, line in enumerate(lines, 1):
                if other := _NO_LABELS.search(line):
                    found = line[other.start() :][:20].split()[0]
                    raise InputError(
                        f"{self.file}, line {number}: expected cluster numbers separated by "
                        f"spaces, found {found!r}"
                    )
                starts = _starts(line)
                counts.append(len(starts))
                first_anchors.append(len(anchors))
                anchors.extend((place + starts[::ANCHOR_STEP]).tolist())
                place += len(line)
                ends.append(place)
        self.counts, self._ends = np.array(counts), np.array(ends)
        self._first_anchors, self._anchors = np.array(first_anchors), np.array(anchors)

    def __len__(self) -> int:
        """Return the number of tracks."""
        return len(self.counts)

    @property
    def num_bytes(self) -> int:
        """Size of the file."""
        return self.file.stat().st_size

    def units(self, track: int, first: int = 0, stop: int | None = None) -> np.ndarray:
        """Return the labels `[first, stop)` of a track, int64; to its end for None or beyond."""
        count = int(self.counts[track])
        stop = count if stop is None else min(stop, count)
        if first >= stop:
            return np.zeros(0, np.int64)
        if self._map is not None:
            return self._map.units(track, first, stop)
        anchor = int(self._first_anchors[track])
        begin = int(self._anchors[anchor + first // ANCHOR_STEP])
        after = -(-stop // ANCHOR_STEP)
        at_end = after * ANCHOR_STEP >= count
        end = int(self._ends[track] if at_end else self._anchors[anchor + after])
        units = np.fromstring(self._text.read(begin, end - begin), np.int64, sep=" ")
        skip = first % ANCHOR_STEP
        return units[skip : skip + stop - first]


def _starts(line: bytes) -> np.ndarray:
    """Return where numbers start: at digits that follow no digit."""
    text = np.frombuffer(line, np.uint8)
    is_digit = (text >= ord("0")) & (text <= ord("9"))
    return np.flatnonzero(is_digit & ~np.concatenate([[False], is_digit[:-1]]))
