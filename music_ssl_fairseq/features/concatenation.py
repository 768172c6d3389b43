"""Join several features, so that each contributes about equally to distances."""

from collections.abc import Mapping

import numpy as np

from music_ssl_fairseq.errors import InputError
from music_ssl_fairseq.features.framewise import Framewise

SCATTER = {"mfcc": 2500.0, "mfcc60": 2900.0, "logmel": 1200.0, "chroma": 0.94, "cqt": 18000.0}
"""Mean squared distance of a frame from the mean frame, over the soundtracks of three games
(`python -m tests.benchmarks.features`). Constants, and not measured on each corpus: a frame then
has the same features wherever it is, and nothing has to be computed before the first one."""


class SideBySide(Framewise):
    """Values of several front ends side by side.

    Args:
        parts: front ends by name.

    Raises:
        InputError: if they have not the same frames.
    """

    def __init__(self, parts: Mapping[str, Framewise]):
        self.parts = dict(parts)
        grids = {front.grid for front in parts.values()}
        if len(grids) > 1:
            rates = ", ".join(f"{name} {front.frame_rate:g}" for name, front in parts.items())
            raise InputError(
                f"{'+'.join(parts)}: only features with the same frames can be joined, and these "
                f"have, per second: {rates}"
            )
        self.grid = grids.pop()
        self.frame_rate = next(iter(parts.values())).frame_rate
        self.dimension = sum(front.dimension for front in parts.values())
        self.context = max(front.context for front in parts.values())

    def features(self, waveform: np.ndarray) -> np.ndarray:
        """Map `[T]` float32 at 16 kHz to `[frames, dimension]` float32, parts in order."""
        return np.concatenate([self._values(name, waveform) for name in self.parts], axis=1)

    def _values(self, name: str, waveform: np.ndarray) -> np.ndarray:
        return self.parts[name].features(waveform)


class Concatenation(SideBySide):
    """The parts' values side by side, each divided by the root of its part's `SCATTER`.

    So each part's frames lie about 1 from their mean, and each contributes about equally to the
    distances that K-means minimises, however many values it has. Within a part nothing changes:
    MFCC alone and MFCC in a concatenation weigh their coefficients alike.

    Args:
        parts: front ends by their names in `SCATTER`.
    """

    def _values(self, name: str, waveform: np.ndarray) -> np.ndarray:
        return super()._values(name, waveform) / np.float32(SCATTER[name] ** 0.5)
