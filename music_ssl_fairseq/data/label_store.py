"""Read pseudo-labels from a `.km` file: one line per track, its units separated by spaces.

Where the labeler has written a memory map as well (`unit_memmap`), that is read instead.
"""

import os
from pathlib import Path

import numpy as np

from music_ssl_fairseq.data.mapped import MappedFile
from music_ssl_fairseq.data.unit_memmap import open_unit_memmap
from music_ssl_fairseq.data.units import label_command
from music_ssl_fairseq.errors import InputError

ANCHOR_STEP = 1024
"""Labels between two known byte offsets of a line: 8 bytes of index per 4 kB of text."""


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
        self._text = MappedFile(self.file)
        self._map = open_unit_memmap(self.file)
        if self._map is None:
            self._index()
        else:
            self.counts = self._map.counts

    def _index(self) -> None:
        # Per line: its end, and the number of labels up to it. Per 1024th label of a line, from
        # the 0th on: its offset.
        ends, totals, anchors = [], [], []
        num_lines = total = line_start = 0
        in_number = False
        for offset, chunk in self._text.chunks():
            digits = _digits(chunk)
            newlines = np.flatnonzero(chunk == ord("\n"))
            self._refuse_other_characters(chunk, digits, newlines, num_lines)
            numbers = _number_starts(digits, in_number)
            before = np.searchsorted(numbers, newlines)
            line_starts = np.concatenate([[line_start], total + before])
            in_chunk = np.diff(before, prepend=0, append=len(numbers))
            in_line = total + np.arange(len(numbers)) - np.repeat(line_starts, in_chunk)
            ends.append(offset + newlines)
            totals.append(line_starts[1:])
            anchors.append(offset + numbers[in_line % ANCHOR_STEP == 0])
            num_lines += len(newlines)
            total += len(numbers)
            line_start = line_starts[-1]
            in_number = bool(digits[-1])
        if len(self._text) and self._text[-1:] != b"\n":
            ends.append(np.array([len(self._text)]))
            totals.append(np.array([total]))
        self._ends = np.concatenate(ends) if ends else np.zeros(0, np.int64)
        self._anchors = np.concatenate(anchors) if anchors else np.zeros(0, np.int64)
        self.counts = np.diff(np.concatenate(totals), prepend=0) if totals else self._ends
        anchors_of_line = -(-self.counts // ANCHOR_STEP)
        self._first_anchor = np.cumsum(anchors_of_line) - anchors_of_line

    def _refuse_other_characters(
        self, chunk: np.ndarray, digits: np.ndarray, newlines: np.ndarray, num_lines: int
    ) -> None:
        # Control characters count as spaces.
        other = ~digits & ((chunk > ord(" ")) | (chunk == 0))
        if other.any():
            at = int(other.argmax())
            line = num_lines + int(np.searchsorted(newlines, at)) + 1
            found = chunk[at : at + 20].tobytes().split()[0]
            raise InputError(
                f"{self.file}, line {line}: expected cluster numbers separated by spaces, "
                f"found {found!r}"
            )

    def __len__(self) -> int:
        """Return the number of tracks."""
        return len(self.counts)

    @property
    def num_bytes(self) -> int:
        """Size of the file."""
        return len(self._text)

    def units(self, track: int, first: int = 0, stop: int | None = None) -> np.ndarray:
        """Return the labels `[first, stop)` of a track, int64; to its end for None or beyond."""
        count = int(self.counts[track])
        stop = count if stop is None else min(stop, count)
        if first >= stop:
            return np.zeros(0, np.int64)
        if self._map is not None:
            return self._map.units(track, first, stop)
        anchor = int(self._first_anchor[track])
        begin = int(self._anchors[anchor + first // ANCHOR_STEP])
        after = -(-stop // ANCHOR_STEP)
        at_end = after * ANCHOR_STEP >= count
        end = int(self._ends[track] if at_end else self._anchors[anchor + after])
        text = self._text[begin:end]
        numbers = _number_starts(_digits(np.frombuffer(text, np.uint8)), False)
        skip = first % ANCHOR_STEP
        wanted = numbers[skip : skip + stop - first + 1].tolist()
        last = wanted[stop - first] if len(wanted) > stop - first else len(text)
        return np.fromstring(text[wanted[0] : last], np.int64, sep=" ")


def _digits(text: np.ndarray) -> np.ndarray:
    return (text >= ord("0")) & (text <= ord("9"))


def _number_starts(digits: np.ndarray, in_number: bool) -> np.ndarray:
    """Return the offsets of digits that follow no digit; `in_number`: one came just before."""
    starts = digits.copy()
    starts[1:] &= ~digits[:-1]
    starts[0] &= not in_number
    return np.flatnonzero(starts)
