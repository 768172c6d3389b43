"""Every track's units."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from music_ssl_fairseq.errors import AudioError
from music_ssl_fairseq.features.chunk_features import FeatureJob, Request
from music_ssl_fairseq.features.track import Track
from music_ssl_fairseq.label.nearest import make_nearest


def unit_type(k: int) -> type[np.unsignedinteger]:
    """The smallest type that holds units of `k` clusters."""
    return np.uint16 if k <= 1 << 16 else np.uint32


@dataclass(frozen=True)
class Labeller(FeatureJob):
    """The job of a worker: tracks to their units.

    Pieces start at the same frames whatever the workers, so that a label never depends on how the
    work was shared out.

    Attributes:
        centroids: `[k, D]` float32.
    """

    centroids: np.ndarray

    @cached_property
    def _nearest(self):
        return make_nearest(self.centroids, self.features.device)

    def requests(self, item: list[Track]) -> list[Request]:
        """All frames of some tracks."""
        size = self.front.piece_frames
        return [
            Request(track, first, min(self._num_frames(track), first + size))
            for track in item
            for first in range(0, self._num_frames(track), size)
        ]

    def collect(self, item: list[Track], features: Iterator) -> list[np.ndarray | AudioError]:
        """`[frames]` units of each track, or why it cannot be read.

        One unit for each frame of the grid: none if the track is too short.
        """
        return [self._label(self._num_frames(track), features) for track in item]

    def _num_frames(self, track: Track) -> int:
        return self.front.grid.num_frames(track.num_samples)

    def _label(self, num_frames: int, read: Iterator) -> np.ndarray | AudioError:
        units = np.empty(num_frames, unit_type(len(self.centroids)))
        size = self.front.piece_frames
        error = None
        for first in range(0, num_frames, size):
            found = next(read)
            if isinstance(found, AudioError):
                error = error or found
            else:
                units[first : first + size] = self._nearest(found)
        return error or units
