"""K-means in torch, for GPUs where faiss has no GPU build.

Distances are matrix products in float32 (never TF32, which keeps 10 bits), and frames are summed by
matrix products as well: adding them up with atomics would give other digits in each run.
"""

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from music_ssl_fairseq.features.exact import exact_products

_BLOCK_VALUES = 1 << 26  # distances held at once: 256 MB
_SHARE = 0.5  # of the GPU's free memory that frames may take


class TorchNearest:
    """The nearest centroid of each frame; see `nearest.Nearest`, whose results these are.

    Args:
        centroids: `[k, D]` float32.
    """

    def __init__(self, centroids: np.ndarray, device: str):
        self._device = torch.device(device)
        self._mean = torch.from_numpy(centroids.mean(axis=0, dtype=np.float64)).float()
        self._mean = self._mean.to(self._device)
        self._centred = torch.from_numpy(centroids).to(self._device) - self._mean
        self._half_norms = self._centred.double().square().sum(1).float() / 2
        self._block = max(1, _BLOCK_VALUES // len(centroids))

    def __call__(self, frames: np.ndarray | Tensor) -> np.ndarray:
        """`[n, D]` float32, an array or a tensor anywhere, to `[n]` int64 units."""
        units = [self.scores(block)[0].argmax(1) for block in self.blocks(frames)]
        return torch.cat(units).cpu().numpy() if units else np.zeros(0, np.int64)

    def scores(self, frames: Tensor) -> tuple[Tensor, Tensor]:
        """`[n, k]`, largest where the squared distance is least, and the centred frames.

        The distance is the frame's squared norm less twice its score.
        """
        centred = frames.to(self._device) - self._mean
        with exact_products():
            return torch.addmm(-self._half_norms, centred, self._centred.T), centred

    def blocks(self, frames: np.ndarray | Tensor) -> Iterator[Tensor]:
        """Pieces of frames that fit at once, as tensors on the device."""
        for block in torch.as_tensor(frames).split(self._block):
            yield block.to(self._device)


class TorchBackend:
    """See `backends.Backend`."""

    def __init__(self, device: str):
        self._device = device
        self.name = f"torch {torch.__version__} ({device})"

    def placed(self, frames: np.ndarray) -> np.ndarray | Tensor:
        device = torch.device(self._device)
        if device.type == "cuda" and frames.nbytes > _SHARE * torch.cuda.mem_get_info(device)[0]:
            return frames
        return torch.from_numpy(frames).to(device)

    def iterate(
        self, frames: np.ndarray | Tensor, centroids: np.ndarray
    ) -> tuple[np.ndarray, float]:
        nearest = TorchNearest(centroids, self._device)
        k, dimension = centroids.shape
        sums = torch.zeros(k, dimension, dtype=torch.float64, device=self._device)
        counts = torch.zeros(k, dtype=torch.float64, device=self._device)
        inertia = torch.zeros((), dtype=torch.float64, device=self._device)
        for block in nearest.blocks(frames):
            scores, centred = nearest.scores(block)
            best, units = scores.max(1)
            distances = (centred.square().sum(1) - 2 * best).clamp_min(0)
            inertia += distances.sum(dtype=torch.float64)
            members = torch.zeros_like(scores).scatter_(1, units[:, None], 1)
            with exact_products():
                sums += (members.T @ centred).double()
            counts += members.sum(0, dtype=torch.float64)
        means = sums / counts.clamp_min(1)[:, None]
        means += torch.from_numpy(centroids.mean(axis=0, dtype=np.float64)).to(means)
        moved = means.float().cpu().numpy()
        empty = (counts == 0).cpu().numpy()
        _refill(moved, empty, counts.cpu().numpy())
        return moved, float(inertia) / len(frames)

    def two_nearest(
        self, frames: np.ndarray | Tensor, centroids: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        nearest = TorchNearest(centroids, self._device)
        distances, units = [], []
        for block in nearest.blocks(frames):
            scores, centred = nearest.scores(block)
            best, which = scores.topk(2, dim=1)
            norms = centred.square().sum(1, keepdim=True)
            distances.append((norms - 2 * best).clamp_min(0).cpu().numpy())
            units.append(which[:, 0].cpu().numpy())
        return np.concatenate(distances), np.concatenate(units)


def _refill(centroids: np.ndarray, empty: np.ndarray, counts: np.ndarray) -> None:
    """Put each empty cluster beside the largest one, as faiss does by chance, in place."""
    counts = counts.copy()
    for cluster in np.flatnonzero(empty):
        largest = int(counts.argmax())
        centroids[cluster] = centroids[largest] * np.float32(1 + 1 / 1024)
        centroids[largest] *= np.float32(1 - 1 / 1024)
        counts[cluster] = counts[largest] = counts[largest] / 2
