"""Predictions of one head for a whole split, on disk and per song."""

import os
import zlib
from dataclasses import dataclass
from pathlib import Path
from zipfile import BadZipFile

import numpy as np

from music_ssl_fairseq.errors import InputError
from music_ssl_fairseq.runtime.files import atomic_path


@dataclass(frozen=True)
class Predictions:
    """Predictions and targets of a split, clip by clip; for beats `beat_counts` in their place."""

    names: list[str]  # `[clips]` files
    group_index: np.ndarray  # `[clips]` int64 number of the song
    # `[clips, outputs]` float64: logits, or for a regression numbers in the labels' units, averaged
    # over a clip's windows; for beats `beat_counts`
    outputs: np.ndarray
    targets: np.ndarray  # as in `ProbingSplit`; for beats `beat_measures`
    windows: np.ndarray  # `[clips]` int64 number of windows

    @property
    def beat_counts(self) -> np.ndarray:
        """`[clips, 6]` float64: beats found, claimed and annotated at ±70 ms, then at ±20 ms."""
        return self.outputs

    @property
    def beat_measures(self) -> np.ndarray:
        """`[clips, 2]` float64: mir_eval's F-measure of each file at ±70 ms and at ±20 ms."""
        return self.targets

    @property
    def num_groups(self) -> int:
        """Number of songs."""
        return int(self.group_index.max()) + 1

    def save(self, file: str | os.PathLike) -> None:
        """Write an .npz, atomically."""
        with atomic_path(file) as temporary, temporary.open("wb") as handle:
            names = np.array([name.encode("utf-8", "surrogateescape") for name in self.names])
            np.savez_compressed(handle, **{**vars(self), "names": names})

    @staticmethod
    def load(file: str | os.PathLike) -> "Predictions":
        """Read what `save` wrote; InputError if it is missing or damaged."""
        try:
            with np.load(file) as stored:
                names = [name.decode("utf-8", "surrogateescape") for name in stored["names"]]
                keys = ("group_index", "outputs", "targets", "windows")
                return Predictions(names, *(stored[key] for key in keys))
        except (OSError, ValueError, KeyError, EOFError, BadZipFile, zlib.error) as error:
            raise InputError(f"{Path(file)}: not the predictions of a probe ({error})") from None
