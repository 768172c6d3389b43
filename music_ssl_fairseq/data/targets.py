"""From a crop to the classes of its model frames."""

from typing import NamedTuple

import numpy as np

from music_ssl_fairseq.data.labels import LabelStore, UnitDictionary
from music_ssl_fairseq.frames import SAMPLE_RATE, FrameGrid, frame_labels, label_hop


class LabelSet(NamedTuple):
    """The labels of a manifest's tracks, in its order (see `check_labels`).

    Attributes:
        store: the units.
        units: their dictionary.
        rate: labels per second.
    """

    store: LabelStore
    units: UnitDictionary
    rate: float


class FrameTargets:
    """Labels of their own rate, seen from the model's frames.

    Attributes:
        hop: samples from one label to the next; crops must start on its multiples.
    """

    def __init__(self, labels: LabelSet, grid: FrameGrid, sample_rate: int = SAMPLE_RATE):
        """Join labels and frames.

        Args:
            grid: the model's frames.

        Raises:
            InputError: if the labels' rate does not divide `sample_rate`.
        """
        self.hop = label_hop(labels.rate, sample_rate)
        self._labels = labels.store
        self._units = labels.units
        self._grid = grid

    @property
    def num_samples(self) -> np.ndarray:
        """`[tracks]` samples up to which every whole frame has a label.

        A frame's label is the one whose hop holds its first sample, so the last frame must begin
        before the labels end. Labels that are themselves made of whole frames reach that far in
        any audio; others may end up to 0.1 s early.
        """
        return self._labels.counts * self.hop + self._grid.window - 1

    def classes(self, track: int, start: int, num_frames: int) -> np.ndarray:
        """Classes of the frames of the crop that begins at sample `start`.

        Returns:
            `[num_frames]` int64.

        Raises:
            InputError: if a label is not in the dictionary.
        """
        first = start // self.hop
        chosen = frame_labels(num_frames, self._grid.hop, self.hop)
        units = self._labels.units(track, first, first + int(chosen[-1]) + 1)
        return self._units.encode(units[chosen])
