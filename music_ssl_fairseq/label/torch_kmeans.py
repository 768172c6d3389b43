"""K-means in torch, for GPUs.

Distances are matrix products in float32 (never TF32, which keeps 10 bits), and frames are summed by
matrix products as well: adding them up with atomics would give other digits in each run.
"""

import contextlib
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

_BLOCK_DISTANCES = 1 << 26  # held at once: 256 MB
_FRAMES_SHARE = 0.5  # of the GPU's free memory that frames may take


@contextlib.contextmanager
def _no_tf32() -> Iterator[None]:
    """Forbid TF32, which keeps 10 bits of the mantissa, whatever the program has allowed."""
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before


class TorchNearest:
    """Find the nearest centroid of each frame, with the results of `nearest_centroid.Nearest`."""

    def __init__(self, centroids: np.ndarray | Tensor, device: str):
        self._device = torch.device(device)
        centroids = torch.as_tensor(centroids).to(self._device)
        self.mean = centroids.double().mean(0).float()
        self._centred = centroids - self.mean
        self._half_norms = self._centred.double().square().sum(1).float() / 2
        self._block = max(1, _BLOCK_DISTANCES // len(centroids))

    def __call__(self, frames: np.ndarray | Tensor) -> np.ndarray:
        """Map `[n, D]` float32, an array or a tensor anywhere, to `[n]` int64 units."""
        units = [self.scores(block)[0].argmax(1) for block in self.blocks(frames)]
        return torch.cat(units).cpu().numpy() if units else np.zeros(0, np.int64)

    def scores(self, frames: Tensor) -> tuple[Tensor, Tensor]:
        """Return `[n, k]`, largest where the squared distance is least, and the centred frames.

        The distance is the frame's squared norm less twice its score.
        """
        centred = frames.to(self._device) - self.mean
        with _no_tf32():
            return torch.addmm(-self._half_norms, centred, self._centred.T), centred

    def blocks(self, frames: np.ndarray | Tensor) -> Iterator[Tensor]:
        """Yield parts of the frames that fit at once, as tensors on the device."""
        for block in torch.as_tensor(frames).split(self._block):
            yield block.to(self._device)


@torch.no_grad()
def lloyd(
    device: str, frames: np.ndarray, centroids: np.ndarray, iterations: int, min_gain: float
) -> tuple[np.ndarray, list[float]]:
    """Iterate on a device; see `kmeans.Lloyd`."""
    placed: np.ndarray | Tensor = frames
    on_gpu = torch.device(device).type == "cuda"
    if not on_gpu or frames.nbytes < _FRAMES_SHARE * torch.cuda.mem_get_info(device)[0]:
        placed = torch.from_numpy(frames).to(device)
    found = torch.from_numpy(centroids).to(device)
    curve: list[float] = []
    for _ in range(iterations):
        found, inertia = _iterate(placed, found, device)
        curve.append(inertia / len(frames))
        if len(curve) > 1 and curve[-2] - curve[-1] < min_gain * curve[-2]:
            break
    return found.cpu().numpy(), curve


def _iterate(frames: np.ndarray | Tensor, centroids: Tensor, device: str) -> tuple[Tensor, float]:
    """Move centroids `[k, D]` to the means of their frames; return also the inertia before."""
    nearest = TorchNearest(centroids, device)
    sums = torch.zeros_like(centroids, dtype=torch.float64)
    counts = sums.new_zeros(len(centroids))
    inertia = sums.new_zeros(())
    for block in nearest.blocks(frames):
        scores, centred = nearest.scores(block)
        best, units = scores.max(1)
        distances = (centred.square().sum(1) - 2 * best).clamp_min(0)
        inertia += distances.sum(dtype=torch.float64)
        members = torch.zeros_like(scores).scatter_(1, units[:, None], 1)
        with _no_tf32():
            sums += (members.T @ centred).double()
        counts += members.sum(0, dtype=torch.float64)
    means = sums / counts.clamp_min(1)[:, None] + nearest.mean.double()
    return _refill(means.float(), counts), float(inertia)


def _refill(centroids: Tensor, counts: Tensor) -> Tensor:
    """Put each empty cluster beside the largest one, as faiss does by chance."""
    for cluster in torch.nonzero(counts == 0).flatten().tolist():
        largest = int(counts.argmax())
        centroids[cluster] = centroids[largest] * (1 + 1 / 1024)
        centroids[largest] *= 1 - 1 / 1024
        counts[cluster] = counts[largest] = counts[largest] / 2
    return centroids
