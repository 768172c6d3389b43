"""Map the labels of a crop to the classes of its model frames."""

from typing import NamedTuple

import numpy as np

from music_ssl_fairseq.data.label_store import LabelStore
from music_ssl_fairseq.data.units import UnitDictionary
from music_ssl_fairseq.frames import FrameGrid, frame_labels, label_hop, labelled_samples


class LabelSet(NamedTuple):
    """The labels of a manifest's tracks, in the manifest's order (see `check_labels`)."""

    store: LabelStore  # the units
    units: UnitDictionary  # their dictionary
    rate: float  # labels per second


class FrameTargets:
    """The label of each frame of the model's `grid`.

    Attributes:
        hop: samples from one label to the next; crops must start on its multiples.

    Raises:
        InputError: if the labels' rate does not divide the sample rate.
    """

    def __init__(self, labels: LabelSet, grid: FrameGrid):
        self.hop = label_hop(labels.rate)
        self._labels = labels.store
        self._units = labels.units
        self._grid = grid

    @property
    def num_samples(self) -> np.ndarray:
        """Samples per track up to which every whole frame has a label: `[tracks]`."""
        return labelled_samples(self._labels.counts, self.hop, self._grid)

    def classes(self, track: int, start: int, num_frames: int) -> np.ndarray:
        """Return classes `[num_frames]` int64 of the crop that begins at sample `start`."""
        first = start // self.hop
        chosen = frame_labels(num_frames, self._grid.hop, self.hop)
        units = self._labels.units(track, first, first + int(chosen[-1]) + 1)
        return self._units.encode(units[chosen])
