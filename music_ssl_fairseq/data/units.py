"""Map units to classes, and the labels of a crop to the classes of its model frames.

A *unit* is a cluster's number, as written in the `.km`. A *class* is the unit's index in fairseq's
dictionary, and what a model predicts. The dictionary begins with four special symbols, so class and
unit differ.
"""

import io
import os
from pathlib import Path
from typing import NamedTuple

import numpy as np

from music_ssl_fairseq.data.label_metadata import label_again, label_command
from music_ssl_fairseq.data.label_store import LabelStore
from music_ssl_fairseq.errors import InputError
from music_ssl_fairseq.frames import FrameGrid, frame_labels, label_hop, labelled_samples
from music_ssl_fairseq.runtime.texts import quoted, read_text
from music_ssl_fairseq.runtime.user_command import with_path


class UnitDictionary:
    """fairseq's `dict.km.txt` (one line `unit count` per unit), with fast encoding."""

    def __init__(self, dict_file: str | os.PathLike, command: str = ""):
        """Read a dictionary; `command` makes the labels, for the message about missing ones.

        Raises InputError if it is missing, lists nothing, or its symbols are not cluster numbers.
        """
        from music_ssl_fairseq.compat import Dictionary  # slow to import

        self.file = Path(dict_file)  # the dictionary file
        given = self.file.parent
        if given.is_file():
            right = with_path(given, str(given.parent))
            raise InputError(f"{given}: a file; give the folder that it is in", right)
        if not self.file.is_file():
            raise InputError(
                f"{self.file}: no such dictionary of units; make it together with the labels",
                command or label_command(self.file.parent),
            )
        self.dictionary = Dictionary()  # fairseq's `Dictionary`, of 4 more symbols than units
        try:
            self.dictionary.add_from_file(io.StringIO(read_text(self.file, "label again")))
        except InputError:
            raise
        except (ValueError, RuntimeError) as error:
            # fairseq quotes the line with its end, or adds advice about its own models.
            reason = " ".join(str(error).split()).partition(". ")[0]
            raise InputError(f"{self.file}: not a dictionary of units: {reason}") from None
        self._classes = self._table(self.dictionary.symbols[self.dictionary.nspecial :])

    def _table(self, symbols: list[str]) -> np.ndarray:
        """Return the class per unit, `[largest unit + 1]` int64; -1 for a unit without class."""
        if not symbols:
            raise InputError(f"{self.file}: lists no unit, so every label would become UNK")
        for symbol in symbols:
            # A table for an absurd unit would fill the memory.
            if not symbol.isascii() or not symbol.isdigit() or len(symbol) > 7:
                raise InputError(f"{self.file}: {quoted(symbol)} is not a cluster number")
        units = np.array([int(symbol) for symbol in symbols])
        classes = np.full(units.max() + 1, -1, np.int64)
        classes[units] = self.dictionary.nspecial + np.arange(len(units))
        return classes

    @property
    def num_units(self) -> int:
        """k, if the dictionary belongs to the labels."""
        return len(self.dictionary) - self.dictionary.nspecial

    def outside(self, units: np.ndarray) -> np.ndarray:
        """Tell which units the dictionary lacks: bool, of the same shape."""
        known = (units >= 0) & (units < len(self._classes))
        return ~known | (self._classes[np.where(known, units, 0)] < 0)

    def encode(self, units: np.ndarray) -> np.ndarray:
        """Map units to classes: int64, of the same shape.

        Raises InputError if a unit is not in the dictionary.
        """
        outside = self.outside(units)
        if outside.any():
            raise InputError(
                f"{self.file}: has no unit {units[outside][0]}, which the labels use: labels and "
                "dictionary are not of one labelling; label again with the options of the labels",
                label_again(self.file.parent),
            )
        return self._classes[units]


class LabelSet(NamedTuple):
    """The labels of a manifest's tracks, in the manifest's order (see `check_labels`)."""

    store: LabelStore  # the units
    units: UnitDictionary  # their dictionary
    rate: float  # labels per second

    @property
    def hop(self) -> int:
        """Samples from one label to the next, on whose multiples crops must start.

        Raises InputError if the rate does not divide the sample rate.
        """
        return label_hop(self.rate)

    def num_samples(self, grid: FrameGrid) -> np.ndarray:
        """Return the samples per track up to which model frames have a label: `[tracks]`."""
        return labelled_samples(self.store.counts, self.hop, grid)

    def classes(self, track: int, start: int, num_frames: int, grid: FrameGrid) -> np.ndarray:
        """Return the class of each frame of a model's `grid`: `[num_frames]` int64.

        They are of the crop that begins at sample `start`.
        """
        first = start // self.hop
        chosen = frame_labels(num_frames, grid.hop, self.hop)
        units = self.store.units(track, first, first + int(chosen[-1]) + 1)
        return self.units.encode(units[chosen])
