"""The unit nearest to a frame."""

from collections.abc import Callable
from typing import Any

import numpy as np

_SCORES = 2**20  # distances that are held at once: 4 MB, as much as stays in a CPU's caches


class Nearest:
    """The nearest centroid of each frame, as one matrix product a block and one thread.

    At the speed of the product itself, which is some 1.6 times that of faiss's flat index on one
    thread, and without importing faiss in each worker.

    Args:
        centroids: `[k, D]` float32.
    """

    def __init__(self, centroids: np.ndarray):
        # |x - c|^2 is least where x.c - |c|^2 / 2 is largest. Both about the centroids' mean, where
        # the norms are small and the difference keeps its digits. The second term is one more row
        # of the product, met by a 1 at the end of each frame.
        self.mean = centroids.mean(axis=0, dtype=np.float64).astype(np.float32)
        centred = centroids - self.mean
        norms = np.square(centred, dtype=np.float64).sum(axis=1)
        self.weight = np.vstack([centred.T, -0.5 * norms.astype(np.float32)])

    def __call__(self, frames: np.ndarray) -> np.ndarray:
        """`[n, D]` float32 to `[n]` int64 units."""
        units = np.empty(len(frames), np.int64)
        dimension, k = self.weight.shape
        rows = max(1, _SCORES // k)
        # New memory for each block would cost as much as what is computed.
        block = np.ones((rows, dimension), np.float32)
        scores = np.empty((rows, k), np.float32)
        for start in range(0, len(frames), rows):
            size = min(rows, len(frames) - start)
            np.subtract(frames[start : start + size], self.mean, out=block[:size, :-1])
            np.matmul(block[:size], self.weight, out=scores[:size])
            scores[:size].argmax(axis=1, out=units[start : start + size])
        return units


def make_nearest(centroids: np.ndarray, device: str) -> Callable[[Any], np.ndarray]:
    """On the CPU in numpy, on a GPU in torch, where frames may be tensors that are there already.

    Returns:
        A function of `[n, D]` float32 frames that gives `[n]` int64 units.
    """
    if device == "cpu":
        return Nearest(centroids)
    from music_ssl_fairseq.label.torch_kmeans import TorchNearest

    return TorchNearest(centroids, device)
