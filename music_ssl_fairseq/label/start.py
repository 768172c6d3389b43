"""Where K-means starts: greedy k-means++ (Arthur and Vassilvitskii, 2007), on a sample.

Each new centroid is a frame drawn with a probability in proportion to its squared distance from
the centroids so far; of a few such draws, the one that lowers the sum of distances most is kept, as
in scikit-learn. After 20 iterations on 600,000 MFCC frames of music, k = 2000, faiss's own random
start ends 1.2 % higher in inertia; its k-means++ is as good there, but takes longer, as it looks at
all frames, and ends 5 % higher where frames are few and clustered, because it draws once.
"""

import numpy as np
from threadpoolctl import threadpool_limits

_FRAMES_PER_CENTROID = 10
_FRAMES = 15_000  # at least, for few centroids
_DRAWS = 5
# More frames and draws start lower, but what comes then (`kmeans`) ends no lower.


def start_centroids(
    frames: np.ndarray, k: int, seed: int | tuple[int, ...], init: str = "kmeans++"
) -> np.ndarray:
    """Choose `k` rows of `frames` to start from.

    Args:
        frames: `[n, D]` float32, n at least k.
        init: `kmeans++`, or `random` for any rows, which is what faiss does by itself.

    Returns:
        `[k, D]` float32. If fewer than `k` frames differ, some are equal.
    """
    rng = np.random.default_rng(seed)
    if init == "random":
        return frames[np.sort(rng.choice(len(frames), k, replace=False))]
    num_frames = min(len(frames), max(_FRAMES, _FRAMES_PER_CENTROID * k))
    sample = frames[np.sort(rng.choice(len(frames), num_frames, replace=False))]
    # Thousands of small products: where other processes want the same CPUs, threads that wait for
    # each other at every one of them took ten times as long.
    with threadpool_limits(1):
        return sample[_greedy(sample, k, rng)]


def _greedy(frames: np.ndarray, k: int, rng: np.random.Generator) -> np.ndarray:
    """`[k]` rows."""
    distances_from = _Distances(frames)
    chosen = rng.integers(len(frames), size=1)
    nearest = distances_from(chosen)[0]
    for _ in range(1, k):
        cumulated = np.cumsum(nearest, dtype=np.float64)
        drawn = np.searchsorted(cumulated, rng.random(_DRAWS) * cumulated[-1], side="right")
        drawn = np.minimum(drawn, len(frames) - 1)
        candidates = np.minimum(distances_from(drawn), nearest)
        best = candidates.sum(axis=1, dtype=np.float64).argmin()
        chosen = np.append(chosen, drawn[best])
        nearest = candidates[best]
    return chosen


class _Distances:
    """Squared distances of all frames from some of them: `[some, n]` float32."""

    def __init__(self, frames: np.ndarray):
        # About their mean, where float32 loses less in the differences of squares.
        self.columns = np.ascontiguousarray((frames - frames.mean(axis=0)).T)
        self.norms = np.square(self.columns).sum(axis=0)

    def __call__(self, rows: np.ndarray) -> np.ndarray:
        distances = (-2 * self.columns[:, rows].T) @ self.columns
        distances += self.norms
        distances += self.norms[rows][:, None]
        return np.maximum(distances, 0, out=distances)
