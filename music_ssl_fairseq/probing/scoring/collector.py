"""What all rows say of a whole split, put together from batches, whatever these were."""

from typing import Any

import numpy as np

from music_ssl_fairseq.errors import InputError
from music_ssl_fairseq.probing.dataset import ProbingDataset


class Collector:
    """Gathers the outputs of all rows over a split's windows."""

    def __init__(self, dataset: ProbingDataset):
        self.dataset = dataset
        self._beats = dataset.split.task.kind == "beats"
        self._sums: np.ndarray | None = None
        self._counts = np.zeros(len(dataset.clips), np.int64)
        self._frames: dict[int, list[tuple[int, np.ndarray]]] = {}

    def add(self, batch: dict[str, Any]) -> None:
        """Take a batch.

        Args:
            batch: `outputs` `[rows, N, outputs]`, and the collater's `clip`, `first` and `rows`.
        """
        outputs = batch["outputs"].numpy()
        if self._beats:
            edges = np.cumsum([0, *batch["rows"]])
            for clip, first, a, b in zip(
                batch["clip"].tolist(), batch["first"].tolist(), edges, edges[1:], strict=False
            ):
                self._frames.setdefault(clip, []).append((first, outputs[:, a:b, 0]))
            return
        if self._sums is None:
            self._sums = np.zeros((len(outputs), len(self._counts), outputs.shape[2]), np.float64)
        clips = batch["clip"].numpy()
        for i, clip in enumerate(clips):
            self._sums[:, clip] += outputs[:, i]
        np.add.at(self._counts, clips, 1)

    def sums(self) -> tuple[np.ndarray, np.ndarray]:
        """Outputs summed over windows `[rows, clips, outputs]`, and windows `[clips]`.

        Raises:
            InputError: if a clip has none, because not the whole split was gone through.
        """
        if self._sums is None or not self._counts.all():
            raise InputError(
                "some clips were not validated: leave dataset.max_valid_steps out, and validate on "
                "one process"
            )
        return self._sums, self._counts

    def activations(self, clip: int) -> np.ndarray:
        """For beats: probability of a beat, `[rows, frames]`."""
        parts = [logits for _, logits in sorted(self._frames[clip], key=lambda part: part[0])]
        return 1 / (1 + np.exp(-np.concatenate(parts, axis=1).astype(np.float64)))
