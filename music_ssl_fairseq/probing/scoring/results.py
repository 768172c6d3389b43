"""Judge all heads of a probe, and write its result files: the grid, scores, predictions.

`probe.json` and `rows.csv` are written after each validation: the upstream, the task, and the best
validation of each head. `SPLIT.json` and `SPLIT_predictions.npz` are written by fairseq-validate:
the metrics of the chosen head.
"""

import csv
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from music_ssl_fairseq.errors import InputError
from music_ssl_fairseq.probing.dataset import ProbingDataset
from music_ssl_fairseq.probing.features.windows import FRAME_RATE
from music_ssl_fairseq.probing.scoring.beats import are_peaks
from music_ssl_fairseq.probing.scoring.metrics import (
    TOLERANCES,
    Scores,
    beat_counts,
    matched,
    score,
)
from music_ssl_fairseq.probing.scoring.predictions import Predictions
from music_ssl_fairseq.runtime.files import atomic_path, write_json
from music_ssl_fairseq.runtime.texts import read_object


class Collector:
    """Outputs of all heads over a split's windows."""

    def __init__(self, dataset: ProbingDataset):
        self.dataset = dataset
        self._beats = dataset.split.spec.of_kind.has_beats
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

        Raises InputError if a clip has no window, because the split was not evaluated whole.
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


HEAD_FIELDS = ("layer", "learning_rate", "score", "best_epoch", "epochs", "chosen")


def final_predictions(
    collector: Collector, decoder: Callable[[np.ndarray], np.ndarray]
) -> Predictions:
    """Return the chosen head's predictions; for beats, `decoder` is one of `DECODERS`."""
    dataset = collector.dataset
    split = dataset.split
    names = [split.manifest.name(i) for i in range(len(split))]
    windows = dataset.windows_per_clip
    if not split.spec.of_kind.has_beats:
        sums, counts = collector.sums()
        outputs = sums[0] / counts[:, None]
        return Predictions(names, split.group_index, outputs, split.targets, windows)
    counted, measured = [], []
    for clip in range(len(names)):
        activation = collector.activations(clip)[0]
        finite = np.isfinite(activation).all()
        estimated = decoder(activation) if finite else np.zeros(0)
        beats, measures = beat_counts(dataset.beat_times(clip), estimated)
        counted.append(beats if finite else [np.nan] * len(beats))
        measured.append(measures)
    of_beats = np.array(counted, np.float64), np.array(measured, np.float64)
    return Predictions(names, split.group_index, *of_beats, windows)


def head_scores(collector: Collector) -> np.ndarray:
    """Compute `spec.metric` of each head's predictions, as `metrics.evaluate` reports it.

    Beats are decoded by `peaks`: `dbn` takes half a minute for all heads and a hundred files, which
    is too slow for every epoch.

    Returns `[heads]` float64; NaN for a head with an output that is not finite.
    """
    split = collector.dataset.split
    if split.spec.of_kind.has_beats:
        counts = np.ones(len(collector.dataset.clips), np.int64)
        outputs = _peak_counts(collector)
    else:
        sums, counts = collector.sums()
        outputs = sums / counts[:, None]
    names = [split.manifest.name(i) for i in range(len(counts))]
    index, targets = split.group_index, split.targets
    heads = (Predictions(names, index, head, targets, counts) for head in outputs)
    return np.array([score(split.spec.metric, split.spec, head) for head in heads])


def _peak_counts(collector: Collector) -> np.ndarray:
    """Count beats found within ±70 ms, claimed and annotated: `[heads, clips, 3]`."""
    dataset = collector.dataset
    clips = []
    for clip in range(len(dataset.clips)):
        annotated, activations = dataset.beat_times(clip), collector.activations(clip)
        counted = []
        for peaks in are_peaks(activations):
            claimed = np.flatnonzero(peaks) / FRAME_RATE
            found = matched(annotated, claimed, TOLERANCES[0])
            counted.append((found, len(claimed), len(annotated)))
        counts = np.array(counted, np.float64)
        counts[~np.isfinite(activations).all(axis=1)] = np.nan
        clips.append(counts)
    return np.stack(clips, axis=1)


def refuse_another(folder: Path, task: str) -> None:
    """Keep the scores of one task from being overwritten by another's.

    Raises InputError if the folder holds results of another task than `task`.
    """
    file = folder / "probe.json"
    try:
        found = read_object(file)["task"]
    except (InputError, KeyError):  # missing, or damaged and to be replaced
        return
    if found != task:
        raise InputError(
            f"{file}: holds a probe of the task {found}, not of {task}; give another hydra.run.dir "
            "(task.output_dir)"
        )


def write_heads(folder: Path, about: dict[str, Any], heads: list[dict[str, Any]]) -> None:
    """Write `probe.json` and `rows.csv`; see `refuse_another`."""
    refuse_another(folder, about["task"])
    write_json(folder / "probe.json", _finite({**about, "rows": heads}))
    with (
        atomic_path(folder / "rows.csv") as temporary,
        temporary.open("w", encoding="utf-8", newline="") as file,
    ):
        table = csv.DictWriter(file, HEAD_FIELDS, lineterminator="\n")
        table.writeheader()
        table.writerows(heads)


def write_scores(
    folder: Path, split: str, about: dict[str, Any], scores: Scores, predictions: Predictions
) -> Path:
    """Write `SPLIT_predictions.npz` and `SPLIT.json`, whose path is returned."""
    refuse_another(folder, about["task"])
    predictions.save(folder / f"{split}_predictions.npz")
    file = folder / f"{split}.json"
    contents = {
        **about,
        "split": split,
        "files": len(predictions.names),
        "groups": predictions.num_groups,
        "windows": int(predictions.windows.sum()),
        "metrics": scores.values,
        "per_class": scores.per_class,
        "absent_classes": scores.absent,
    }
    write_json(file, _finite(contents))
    return file


def _finite(value: Any) -> Any:
    """Replace numbers that are not finite by None, JSON's null."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
