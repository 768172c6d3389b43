"""Every track's units: the nearest centroid of each frame."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any

import numpy as np

from music_ssl_fairseq.features.chunk_features import FeatureWork, Request, Track

_BLOCK_DISTANCES = 2**20  # held at once: 4 MB, as much as stays in a CPU's caches


class Nearest:
    """Find the nearest centroid of each frame, by one matrix product per block and one thread.

    At the speed of the product itself, which is some 1.6 times that of faiss's flat index on one
    thread, and without importing faiss in each worker. Centroids are `[k, D]` float32.
    """

    def __init__(self, centroids: np.ndarray):
        # |x - c|^2 is least where x.c - |c|^2 / 2 is largest. Around the centroids' mean, norms are
        # small, so the difference keeps its digits. Append -|c|^2 / 2 to each centroid, and 1 to
        # each frame: one product computes both terms.
        self.mean = centroids.mean(axis=0, dtype=np.float64).astype(np.float32)
        centred = centroids - self.mean
        norms = np.square(centred, dtype=np.float64).sum(axis=1)
        self.weight = np.vstack([centred.T, -0.5 * norms.astype(np.float32)])

    def __call__(self, frames: np.ndarray) -> np.ndarray:
        """Map `[n, D]` float32 to `[n]` int64 units."""
        units = np.empty(len(frames), np.int64)
        dimension, k = self.weight.shape
        size = max(1, _BLOCK_DISTANCES // k)
        # New memory for each block would cost as much as the product.
        block = np.ones((size, dimension), np.float32)
        scores = np.empty((size, k), np.float32)
        for start in range(0, len(frames), size):
            count = min(size, len(frames) - start)
            np.subtract(frames[start : start + count], self.mean, out=block[:count, :-1])
            np.matmul(block[:count], self.weight, out=scores[:count])
            scores[:count].argmax(axis=1, out=units[start : start + count])
        return units


def make_nearest(centroids: np.ndarray, device: str) -> Callable[[Any], np.ndarray]:
    """Return a function of `[n, D]` float32 frames that gives `[n]` int64 units.

    On the CPU in numpy, on a GPU in torch, where frames may be tensors that are there already.
    """
    if device == "cpu":
        return Nearest(centroids)
    from music_ssl_fairseq.label.torch_kmeans import TorchNearest

    return TorchNearest(centroids, device)


def unit_type(k: int) -> type[np.unsignedinteger]:
    """Return the smallest type that holds units of `k` clusters."""
    return np.uint16 if k <= 1 << 16 else np.uint32


@dataclass(frozen=True)
class Labeler(FeatureWork):
    """Work for a pool: the units of tracks, of each label set.

    Chunks start at the same frames whatever the workers, so that a label never depends on how the
    work is shared out.
    """

    # `[k, D]` float32 of each set. A frame has the features of all sets, one after the other.
    centroids: tuple[np.ndarray, ...]

    @cached_property
    def _nearest(self):
        return [make_nearest(centroids, self.features.device) for centroids in self.centroids]

    def requests(self, part: Track) -> list[Request]:
        """Return requests for all frames of a track."""
        num_frames = self.front.grid.num_frames(part.num_samples)
        size = self.front.chunk_frames
        return [
            Request(part, first, min(num_frames, first + size))
            for first in range(0, num_frames, size)
        ]

    def collect(self, part: Track, features: Iterator) -> np.ndarray:
        """Return `[frames, sets]` units of a track, for the frames of its grid, if it has any."""
        edges = np.cumsum([0, *(centroids.shape[1] for centroids in self.centroids)])
        columns = [slice(*pair) for pair in pairwise(edges.tolist())]
        units = [np.empty((0, len(columns)), unit_type(max(map(len, self.centroids))))]
        for frames in features:
            found = [f(frames[:, own]) for f, own in zip(self._nearest, columns, strict=True)]
            units.append(np.stack(found, axis=1).astype(units[0].dtype))
        return np.concatenate(units)
