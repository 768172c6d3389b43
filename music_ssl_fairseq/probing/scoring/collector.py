"""Collect the outputs of heads over a whole split from batches of any size."""

from typing import Any

import numpy as np

from music_ssl_fairseq.errors import InputError
from music_ssl_fairseq.probing.dataset import ProbingDataset


class Collector:
    """Outputs of all heads over a split's windows."""

    def __init__(self, dataset: ProbingDataset):
        self.dataset = dataset
        self._beats = dataset.split.spec.kind == "beats"
        self._sums: np.ndarray | None = None
        self._counts = np.zeros(len(dataset.clips), np.int64)
        self._frames: dict[int, list[tuple[int, np.ndarray]]] = {}

    def add(self, batch: dict[str, Any]) -> None:
        """Add a batch: `outputs` `[heads, N, outputs]`, `clip`, `first`, `sizes`, as collated."""
        outputs = batch["outputs"].numpy()
        if self._beats:
            stops = np.cumsum(batch["sizes"])
            columns = batch["clip"].tolist(), batch["first"].tolist(), stops, batch["sizes"]
            for clip, first, stop, size in zip(*columns, strict=True):
                part = outputs[:, stop - size : stop, 0]
                self._frames.setdefault(clip, []).append((first, part))
            return
        if self._sums is None:
            self._sums = np.zeros((len(outputs), len(self._counts), outputs.shape[2]), np.float64)
        clips = batch["clip"].numpy()
        for i, clip in enumerate(clips):
            self._sums[:, clip] += outputs[:, i]
        np.add.at(self._counts, clips, 1)

    def sums(self) -> tuple[np.ndarray, np.ndarray]:
        """Return outputs summed over windows `[heads, clips, outputs]`, and windows `[clips]`.

        Raises:
            InputError: if a clip has no window, because the split was not evaluated whole.
        """
        if self._sums is None or not self._counts.all():
            raise InputError(
                "some clips were not validated: leave dataset.max_valid_steps out, and validate on "
                "one process"
            )
        return self._sums, self._counts

    def activations(self, clip: int) -> np.ndarray:
        """Return, for beats, the probability of a beat: `[heads, frames]`."""
        parts = [logits for _, logits in sorted(self._frames[clip], key=lambda part: part[0])]
        return 1 / (1 + np.exp(-np.concatenate(parts, axis=1).astype(np.float64)))
