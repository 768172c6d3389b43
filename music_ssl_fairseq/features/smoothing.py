"""Average features over time."""

import numpy as np

from music_ssl_fairseq.features.framewise import Framewise


class Smoothed(Framewise):
    """A centred moving average of another front end's features.

    At the track's ends, the mean of those frames that exist.

    Args:
        front: whose features are averaged.
        seconds: length of the average, rounded to an odd number of frames.
    """

    def __init__(self, front: Framewise, seconds: float):
        self.front = front
        self.grid, self.frame_rate, self.dimension = front.grid, front.frame_rate, front.dimension
        self.together = front.together
        self._reach = round(seconds * front.frame_rate / 2)
        self.context = front.context + self._reach

    def features(self, waveform: np.ndarray) -> np.ndarray:
        """`[T]` float32, nominally in [-1, 1], 16 kHz, to `[frames, dimension]` float32."""
        values = self.front.features(waveform)
        sums = np.zeros((len(values) + 1, self.dimension))
        np.cumsum(values, axis=0, dtype=np.float64, out=sums[1:])
        places = np.arange(len(values))
        first = np.maximum(places - self._reach, 0)
        last = np.minimum(places + self._reach + 1, len(values))
        return ((sums[last] - sums[first]) / (last - first)[:, None]).astype(np.float32)
