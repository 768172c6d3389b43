"""K-means: fitting with faiss, and the unit nearest to a frame."""

import os
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from music_ssl_fairseq.errors import InputError
from music_ssl_fairseq.label.start import start_centroids

FRAMES_PER_CENTROID = 39
"""Below this many frames a centroid, the units are more noise than structure (faiss's bound)."""

_BLOCK = 512  # frames whose distances to all centroids are held at once: 4 MB for k = 2000


class Fit(NamedTuple):
    """Centroids, and how they came about.

    Attributes:
        centroids: `[k, D]` float32.
        curve: mean squared distance of a frame to its centroid (the inertia over the number of
            frames): before each iteration, and at last for `centroids`.
    """

    centroids: np.ndarray
    curve: list[float]


def check_enough(num_frames: int, k: int) -> str | None:
    """Whether so many frames make `k` clusters: a warning if hardly.

    Raises:
        InputError: if there are fewer frames than clusters.
    """
    if num_frames < k:
        raise InputError(
            f"{num_frames} frames cannot make {k} clusters: "
            "give more audio, a smaller --k or a larger --max-frames"
        )
    if num_frames < FRAMES_PER_CENTROID * k:
        return (
            f"{num_frames} frames for {k} clusters are {num_frames / k:.1f} a centroid, and below "
            f"{FRAMES_PER_CENTROID} units follow chance more than sound: give more audio, "
            f"or --k {max(1, num_frames // FRAMES_PER_CENTROID)}"
        )
    return None


def fit(
    frames: np.ndarray,
    k: int,
    iterations: int,
    seed: int,
    threads: int,
    watch: Callable[[float], None],
) -> Fit:
    """Cluster frames.

    Starts from `start_centroids`. All frames are used: faiss by itself would silently take 256 a
    centroid. The result depends on the frames' order and `seed`, not on `threads`.

    Args:
        frames: `[n, D]` float32, C-contiguous; at least `k`, see `check_enough`.
        iterations: at most; fewer if the centroids no longer move.
        watch: called with the inertia before each iteration.
    """
    faiss = _faiss()
    faiss.omp_set_num_threads(threads)
    step = faiss.Kmeans(
        frames.shape[1],
        k,
        niter=1,  # many calls of one iteration equal one of many, but can be watched
        max_points_per_centroid=len(frames),
        min_points_per_centroid=1,
    )
    curve: list[float] = []
    centroids = start_centroids(frames, k, seed)
    for _ in range(iterations):
        before = centroids
        curve.append(float(step.train(frames, init_centroids=before)) / len(frames))
        watch(curve[-1])
        centroids = np.asarray(step.centroids)
        if np.array_equal(before, centroids):
            break
    distances, _ = step.assign(frames)
    curve.append(float(distances.mean(dtype=np.float64)))
    return Fit(centroids, curve)


def _faiss():
    """Import faiss such that its threads sleep between their turns, unless told otherwise.

    By default they spin. Where other processes want the same CPUs, that took ten times as long;
    where none do, both take the same time. The setting is read as faiss loads.
    """
    chosen = os.environ.get("OMP_WAIT_POLICY")
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    try:
        import faiss
    finally:
        if chosen is None:
            del os.environ["OMP_WAIT_POLICY"]
    return faiss


class Nearest:
    """The nearest centroid of each frame, as one matrix product a block and one thread.

    Faster than faiss's flat index on one thread (5,200 against 3,800 seconds of MFCC a second, for
    k = 2000), and without importing it in each worker.
    """

    def __init__(self, centroids: np.ndarray):
        # |x - c|^2 is least where x.c - |c|^2 / 2 is largest. Both about the centroids' mean, where
        # the norms are small and the difference keeps its digits; the second term is one more row.
        self.mean = centroids.mean(axis=0, dtype=np.float64).astype(np.float32)
        centred = centroids - self.mean
        norms = np.square(centred, dtype=np.float64).sum(axis=1)
        self.weight = np.vstack([centred.T, -0.5 * norms.astype(np.float32)])

    def __call__(self, frames: np.ndarray) -> np.ndarray:
        """`[n, D]` float32 to `[n]` int64 units."""
        units = np.empty(len(frames), np.int64)
        for start in range(0, len(frames), _BLOCK):
            block = frames[start : start + _BLOCK] - self.mean
            scores = block @ self.weight[:-1]
            scores += self.weight[-1]
            units[start : start + _BLOCK] = scores.argmax(axis=1)
        return units
