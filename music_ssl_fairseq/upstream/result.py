"""The result of `Upstream.features`."""

from dataclasses import dataclass

import numpy as np
from torch import Tensor


@dataclass(frozen=True, eq=False, repr=False)
class Features:
    """Features of one clip."""

    layers: Tensor  # `[layers, frames, D]` float32 on the CPU, in the order asked for
    numbers: list[int]  # which layer each of them is, from 0
    times: Tensor  # `[frames]` float64, the middle of each frame in seconds from the clip's start

    def mean(self) -> Tensor:
        """Return the mean over time, `[layers, D]` float32."""
        return self.layers.mean(1)

    def numpy(self) -> np.ndarray:
        """Return `layers` as a NumPy array."""
        return self.layers.numpy()

    def __repr__(self) -> str:
        _, frames, dimension = self.layers.shape
        numbers = ", ".join(map(str, self.numbers))
        first, last = self.times[0].item(), self.times[-1].item()
        return (
            f"Features(layers {numbers}: {frames} frames of {dimension} values, {first:.2f} to "
            f"{last:.2f} s)"
        )
