"""What probes say of a whole split, put together from batches, whatever these were."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from music_ssl_fairseq.errors import InputError
from music_ssl_fairseq.files import atomic_path
from music_ssl_fairseq.probing.dataset import ProbingDataset


@dataclass(frozen=True)
class Predictions:
    """One probe's predictions of a split, clip by clip.

    Attributes:
        names: `[clips]` files.
        group_index: `[clips]` int64, which song a clip is of.
        outputs: `[clips, outputs]` float64: logits, or for a regression numbers in the labels' own
            units, averaged over a clip's windows. For beats `[clips, 6]`: for each of ±70 and ±20
            ms, beats that were found, beats claimed and beats annotated.
        targets: as in `ProbingSplit`; for beats `[clips, 2]`, each file's F-measure at ±70 and ±20
            ms by mir_eval.
        windows: `[clips]` int64.
    """

    names: list[str]
    group_index: np.ndarray
    outputs: np.ndarray
    targets: np.ndarray
    windows: np.ndarray

    def save(self, file: str | os.PathLike) -> None:
        """Write an .npz, atomically."""
        with atomic_path(file) as temporary, temporary.open("wb") as handle:
            np.savez_compressed(
                handle,
                names=np.array([name.encode("utf-8", "surrogateescape") for name in self.names]),
                group_index=self.group_index,
                outputs=self.outputs,
                targets=self.targets,
                windows=self.windows,
            )

    @staticmethod
    def load(file: str | os.PathLike) -> "Predictions":
        """Read what `save` wrote.

        Raises:
            InputError: if it is missing or damaged.
        """
        try:
            with np.load(file) as stored:
                names = [name.decode("utf-8", "surrogateescape") for name in stored["names"]]
                keys = ("group_index", "outputs", "targets", "windows")
                return Predictions(names, *(stored[key] for key in keys))
        except (OSError, ValueError, KeyError) as error:
            raise InputError(f"{Path(file)}: not the predictions of a probe ({error})") from None


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


def grouped(values: np.ndarray, counts: np.ndarray, group_index: np.ndarray) -> np.ndarray:
    """Mean over all windows of a song.

    Args:
        values: `[..., clips, outputs]`, sums over windows.
        counts: `[clips]` windows.

    Returns:
        `[..., groups, outputs]`.
    """
    groups = int(group_index.max()) + 1
    totals = np.zeros((*values.shape[:-2], groups, values.shape[-1]))
    for clip, group in enumerate(group_index):
        totals[..., group, :] += values[..., clip, :]
    return totals / np.bincount(group_index, counts, groups)[:, None]
