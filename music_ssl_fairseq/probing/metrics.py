"""Metrics of a task over a whole split, from predictions: torchmetrics' and mir_eval's.

All are fractions (1 is perfect), the field's usual percentages divided by 100.
"""

from collections.abc import Callable
from functools import lru_cache
from types import ModuleType
from typing import NamedTuple

import numpy as np

from music_ssl_fairseq.data.probing_task import ProbingTask
from music_ssl_fairseq.errors import InputError
from music_ssl_fairseq.optional import optional
from music_ssl_fairseq.probing.predictions import Predictions, grouped
from music_ssl_fairseq.probing.ranking import present_classes

TOLERANCES = (0.07, 0.02)
"""Seconds that a beat may be off."""

EXTRA = "probing"
"""Of setup.py: installs torchmetrics and mir_eval."""


class Scores(NamedTuple):
    """`values` by name; `per_class` by metric and class; classes that could not be scored."""

    values: dict[str, float]
    per_class: dict[str, dict[str, float]]
    absent: list[str]


def evaluate(task: ProbingTask, predictions: Predictions) -> Scores:
    """All metrics of the task's kind.

    Returns:
        multi-class: `accuracy` (clips), `group_accuracy` (files or songs). key: the same, and
        `weighted_key_score`, `group_weighted_key_score`. multi-label: `macro_roc_auc`,
        `macro_average_precision` over the classes that are there. regression: `r2` and, for each
        target, `r2_NAME`. beats: `f_measure` and `f_measure_20ms`, pooled over all files;
        `f_measure_per_file` and `f_measure_per_file_20ms`, mir_eval's means.
    """
    return _KINDS[task.kind](task, predictions)


def group_outputs(predictions: Predictions) -> tuple[np.ndarray, np.ndarray]:
    """Outputs averaged over all windows of each song `[groups, outputs]`, and the songs' targets.

    Raises:
        InputError: if a song has clips of different classes.
    """
    index = predictions.group_index
    sums = predictions.outputs * predictions.windows[:, None]
    first = np.unique(index, return_index=True)[1]
    targets = predictions.targets[first]
    differ = np.flatnonzero(predictions.targets != targets[index])
    if len(differ):
        raise InputError(
            f"{predictions.names[differ[0]]}: another label than other clips of its song"
        )
    return grouped(sums, predictions.windows, index), targets


def _classes(task: ProbingTask, predictions: Predictions) -> Scores:
    accuracy = _accuracy(predictions.outputs, predictions.targets)
    songs = _accuracy(*group_outputs(predictions))
    there = np.isin(np.arange(len(task.classes)), predictions.targets)
    absent = [name for name, found in zip(task.classes, there, strict=True) if not found]
    return Scores({"accuracy": accuracy, "group_accuracy": songs}, {}, absent)


def _accuracy(outputs: np.ndarray, targets: np.ndarray) -> float:
    import torch

    functional = _torchmetrics()
    return float(
        functional.multiclass_accuracy(
            torch.from_numpy(outputs.argmax(-1)),
            torch.from_numpy(targets),
            num_classes=outputs.shape[1],
            average="micro",
        )
    )


def _key(task: ProbingTask, predictions: Predictions) -> Scores:
    scores = _classes(task, predictions)
    table = key_scores(task.classes)
    clips = table[predictions.targets, predictions.outputs.argmax(-1)].mean()
    outputs, targets = group_outputs(predictions)
    songs = table[targets, outputs.argmax(-1)].mean()
    return scores._replace(
        values={
            "weighted_key_score": float(clips),
            "group_weighted_key_score": float(songs),
            **scores.values,
        }
    )


@lru_cache(maxsize=4)
def key_scores(classes: tuple[str, ...]) -> np.ndarray:
    """`[true key, claimed key]`: mir_eval's weighted score.

    Raises:
        InputError: if a class is no key.
    """
    key = optional("mir_eval.key", EXTRA)
    try:
        return np.array([[key.weighted_score(a, b) for b in classes] for a in classes])
    except ValueError as error:
        raise InputError(f"task.json: a class is no key such as `Eb minor` ({error})") from None


def _multi_label(task: ProbingTask, predictions: Predictions) -> Scores:
    import torch

    functional = _torchmetrics()
    targets = predictions.targets
    present = np.flatnonzero(present_classes(targets))
    names = [task.classes[c] for c in present]
    absent = [name for c, name in enumerate(task.classes) if c not in present]
    # Ranks are all that counts, and double precision keeps those that are close apart.
    chosen = torch.from_numpy(_ranks(predictions.outputs[:, present]))
    labels = torch.from_numpy(targets[:, present].astype(np.int64))
    values, per_class = {}, {}
    for name, function in (
        ("macro_roc_auc", functional.multilabel_auroc),
        ("macro_average_precision", functional.multilabel_average_precision),
    ):
        scores = (
            function(chosen, labels, num_labels=len(names), average=None)
            if names
            else torch.zeros(0)
        )
        found = np.atleast_1d(scores.double().numpy())
        per_class[name] = dict(zip(names, found.tolist(), strict=True))
        values[name] = float(found.mean()) if names else float("nan")
    return Scores(values, per_class, absent)


def _ranks(outputs: np.ndarray) -> np.ndarray:
    """Each column as ranks in [0, 1], equal where values are equal; float64.

    torchmetrics passes what it takes for logits through a sigmoid in single precision, which makes
    large ones equal.
    """
    columns = [np.unique(column, return_inverse=True)[1] for column in outputs.T]
    if not columns:
        return outputs
    return np.stack(columns, axis=1) / max(1, len(outputs))


def _regression(task: ProbingTask, predictions: Predictions) -> Scores:
    import torch

    functional = optional("torchmetrics.functional.regression", EXTRA)
    if len(predictions.outputs) < 2:
        raise InputError("R2 needs at least two files in a split")
    found = functional.r2_score(
        torch.from_numpy(predictions.outputs),
        torch.from_numpy(predictions.targets),
        multioutput="raw_values",
    )
    each = np.atleast_1d(found.double().numpy())
    named = {f"r2_{name}": float(v) for name, v in zip(task.targets, each, strict=True)}
    return Scores({"r2": float(each.mean()), **named}, {}, [])


def _beats(task: ProbingTask, predictions: Predictions) -> Scores:
    counts = predictions.outputs.sum(axis=0)
    per_file = predictions.targets.mean(axis=0)
    values = {}
    for i, suffix in enumerate(("", "_20ms")):
        found, claimed, annotated = counts[3 * i : 3 * i + 3]
        values[f"f_measure{suffix}"] = float(2 * found / max(1.0, claimed + annotated))
        values[f"f_measure_per_file{suffix}"] = float(per_file[i])
    return Scores(values, {}, [])


def beat_counts(reference: np.ndarray, estimated: np.ndarray) -> tuple[list[int], list[float]]:
    """A file's beats found, claimed and annotated, and mir_eval's F-measures, for TOLERANCES.

    mir_eval leaves out the first five seconds; the counts are over the whole file.
    """
    beat, util = optional("mir_eval.beat", EXTRA), optional("mir_eval.util", EXTRA)
    counts: list[int] = []
    measures: list[float] = []
    for tolerance in TOLERANCES:
        counts += [
            len(util.match_events(reference, estimated, tolerance)),
            len(estimated),
            len(reference),
        ]
        trimmed = beat.trim_beats(reference), beat.trim_beats(estimated)
        measures.append(beat.f_measure(*trimmed, f_measure_threshold=tolerance))
    return counts, measures


_KINDS: dict[str, Callable[[ProbingTask, Predictions], Scores]] = {
    "multi-class": _classes,
    "key": _key,
    "multi-label": _multi_label,
    "regression": _regression,
    "beats": _beats,
}


def _torchmetrics() -> ModuleType:
    return optional("torchmetrics.functional.classification", EXTRA)
