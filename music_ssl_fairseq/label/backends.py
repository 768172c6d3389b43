"""The two inner steps of K-means, over all frames: in faiss, or in torch where faiss has no GPU."""

import os
from typing import Any, Protocol

import numpy as np

from music_ssl_fairseq.errors import InputError


class Backend(Protocol):
    """What K-means is built from. Frames are `[n, D]`, centroids `[k, D]`, both float32."""

    name: str

    def placed(self, frames: np.ndarray) -> Any:
        """Frames where the steps find them without carrying them there each time.

        Returns:
            What the steps take for `frames`; slices of it as well.
        """
        ...

    def iterate(self, frames: Any, centroids: np.ndarray) -> tuple[np.ndarray, float]:
        """Centroids moved to the means of their frames, and the inertia there was before."""
        ...

    def two_nearest(self, frames: Any, centroids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Squared distances to the two nearest centroids `[n, 2]`, and the nearest, `[n]`."""
        ...


class FaissBackend:
    """faiss on the CPU, or on all GPUs.

    Args:
        threads: of the CPU. The result does not depend on them.
    """

    def __init__(self, threads: int, on_gpu: bool = False):
        self._faiss = import_faiss()
        self._faiss.omp_set_num_threads(threads)
        self._on_gpu = on_gpu
        self.name = f"faiss {self._faiss.__version__}{' (GPU)' if on_gpu else ''}"

    def placed(self, frames: np.ndarray) -> np.ndarray:
        return frames

    def iterate(self, frames: np.ndarray, centroids: np.ndarray) -> tuple[np.ndarray, float]:
        step = self._faiss.Kmeans(
            frames.shape[1],
            len(centroids),
            niter=1,  # many calls of one iteration equal one of many, but can be watched
            max_points_per_centroid=len(frames),  # by itself faiss silently takes 256
            min_points_per_centroid=1,
            gpu=self._on_gpu,
        )
        inertia = float(step.train(frames, init_centroids=centroids)) / len(frames)
        return np.asarray(step.centroids), inertia

    def two_nearest(
        self, frames: np.ndarray, centroids: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        distances, nearest = self._faiss.knn(frames, centroids, 2)
        return np.maximum(distances, 0), nearest[:, 0]


def import_faiss():
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


def choose_device(asked: str, with_model: bool) -> str:
    """`cpu` or `cuda`.

    Args:
        asked: `auto`, `cpu` or `cuda`. `auto` is a GPU, where there is one, for features that a
            model computes; K-means of others takes seconds, and torch takes as long to load.

    Raises:
        InputError: if a GPU is asked for and there is none.
    """
    if asked == "cpu" or (asked == "auto" and not with_model):
        return "cpu"
    import torch

    if torch.cuda.is_available():
        return "cuda"
    if asked == "cuda":
        raise InputError("--device cuda: torch finds no GPU here; take --device cpu")
    return "cpu"


def choose_backend(device: str, threads: int) -> Backend:
    """faiss on the CPU; on a GPU faiss if it is a GPU build, else torch."""
    if device == "cpu":
        return FaissBackend(threads)
    faiss = import_faiss()
    if getattr(faiss, "get_num_gpus", lambda: 0)():
        return FaissBackend(threads, on_gpu=True)
    from music_ssl_fairseq.label.torch_kmeans import TorchBackend

    return TorchBackend(device)
