"""Compute the metrics of a task, with one implementation for selection, reports and bootstrap.

`statistic` computes a metric for many weightings of a split's songs at once. Choosing among heads
and reporting weigh every song once; the bootstrap weighs each by how often it was drawn. Tests
compare it with scikit-learn and mir_eval.

All metrics are fractions: 1 is perfect. A metric of outputs that are not all finite is NaN, so a
diverged head is never the best one.
"""

from functools import lru_cache
from typing import NamedTuple

import numpy as np

from music_ssl_fairseq.errors import InputError
from music_ssl_fairseq.probing.scoring.predictions import Predictions
from music_ssl_fairseq.probing.scoring.ranking import RANKINGS, by_class, macro, present_classes
from music_ssl_fairseq.probing.spec import KINDS, ProbingSpec
from music_ssl_fairseq.runtime.imports import optional

TOLERANCES = (0.07, 0.02)
"""Largest errors of a beat in seconds."""

EXTRA = "probing"
"""Extra of the package that installs mir_eval."""

_NAMES = frozenset(name for kind in KINDS.values() for name in kind.reported)
_CONSTANT_VARIANCE = 1e-28  # relative to the squared largest deviation: rounding of a constant


class Scores(NamedTuple):
    """`values` by name, `per_class` by metric and class, and the classes that have no score."""

    values: dict[str, float]
    per_class: dict[str, dict[str, float]]
    absent: list[str]


def evaluate(task: ProbingSpec, predictions: Predictions) -> Scores:
    """Compute all metrics of the task's kind, each song weighed once.

    Returns:
        - multi-class: `accuracy` (clips), `group_accuracy` (files or songs).
        - key: also `weighted_key_score`, `group_weighted_key_score`.
        - multi-label: `macro_roc_auc`, `macro_average_precision` over the classes present.
        - regression: `r2`, and `r2_NAME` of each target.
        - beats: `f_measure` and `f_measure_20ms`, pooled over all files; `f_measure_per_file` and
          `f_measure_per_file_20ms`, mir_eval's means.

        NaN where a metric is not defined: no class with positive and negative examples, or a
        constant target.
    """
    names = [*task.of_kind.reported, *(f"r2_{target}" for target in task.targets)]
    values = {name: score(name, task, predictions) for name in names}
    if task.of_kind.many_classes:
        there = present_classes(predictions.targets)
        chosen = [name for name, found in zip(task.classes, there, strict=True) if found]
        arrays = predictions.outputs, predictions.targets, np.ones((1, len(predictions.names)))
        per_class = {
            metric: dict(zip(chosen, by_class(metric, *arrays)[0], strict=True))
            for metric in task.of_kind.reported
        }
    else:
        there = np.isin(np.arange(len(task.classes)), predictions.targets)
        per_class = {}
    absent = [name for name, found in zip(task.classes, there, strict=True) if not found]
    return Scores(values, per_class, absent)


def score(metric: str, task: ProbingSpec, predictions: Predictions) -> float:
    """Compute one metric, each song weighed once."""
    once = np.ones((1, predictions.num_groups), np.int64)
    return float(statistic(metric, predictions, once, task.classes, task.targets)[0])


def statistic(
    metric: str,
    predictions: Predictions,
    counts: np.ndarray,
    classes: tuple[str, ...] = (),
    targets: tuple[str, ...] = (),
) -> np.ndarray:
    """Compute a metric for each weighting of the songs; all ones give the metric itself.

    Raises ValueError if there is no such metric.

    Args:
        metric: a name of `evaluate`.
        counts: `[weightings, groups]` at least 0, the weight of each song.
        classes, targets: names, from the task's spec.

    Returns:
        `[weightings]`; NaN where the metric is not defined, or an output is not finite.
    """
    if metric not in _NAMES and metric not in {f"r2_{target}" for target in targets}:
        raise ValueError(f"no metric {metric!r}")
    if not np.isfinite(predictions.outputs).all():
        return np.full(len(counts), np.nan)
    weights = counts[:, predictions.group_index].astype(np.float64)
    if metric in RANKINGS:
        return macro(metric, predictions.outputs, predictions.targets, weights)
    if metric.startswith("r2"):
        each = _r2(predictions, weights)
        return each.mean(axis=1) if metric == "r2" else each[:, targets.index(metric[3:])]
    if metric.startswith("f_measure"):
        place = int(metric.endswith("_20ms"))
        if "per_file" in metric:
            return _mean(weights, predictions.beat_measures[:, place])
        counted = (weights @ predictions.beat_counts)[:, 3 * place : 3 * place + 3]
        found, claimed, annotated = counted.T
        return 2 * found / np.maximum(1, claimed + annotated)
    table = key_scores(classes) if "key_score" in metric else np.eye(len(classes))
    outputs, labels = predictions.outputs, predictions.targets
    if metric.startswith("group_"):
        weights = counts.astype(np.float64)
        outputs, labels = group_outputs(predictions)
    return _mean(weights, table[labels, outputs.argmax(-1)])


def group_outputs(predictions: Predictions) -> tuple[np.ndarray, np.ndarray]:
    """Return outputs averaged over all windows of a song `[groups, outputs]`, and the targets."""
    index, windows = predictions.group_index, predictions.windows
    sums = np.zeros((predictions.num_groups, predictions.outputs.shape[1]))
    np.add.at(sums, index, predictions.outputs * windows[:, None])
    targets = predictions.targets[np.unique(index, return_index=True)[1]]
    return sums / np.bincount(index, windows)[:, None], targets


@lru_cache(maxsize=4)
def key_scores(classes: tuple[str, ...]) -> np.ndarray:
    """Tabulate mir_eval's weighted score: `[true key, claimed key]`.

    Raises InputError if a class is no key.
    """
    key = optional("mir_eval.key", EXTRA)
    try:
        return np.array([[key.weighted_score(a, b) for b in classes] for a in classes])
    except ValueError as error:
        raise InputError(f"task.json: a class is no key such as `Eb minor` ({error})") from None


def beat_counts(reference: np.ndarray, estimated: np.ndarray) -> tuple[list[int], list[float]]:
    """Count a file's beats found, claimed and annotated, and compute mir_eval's F-measures.

    Both are for each of `TOLERANCES`. mir_eval leaves out the first five seconds; the counts are
    of the whole file.
    """
    beat = optional("mir_eval.beat", EXTRA)
    trimmed = beat.trim_beats(reference), beat.trim_beats(estimated)
    counts = [
        count
        for tolerance in TOLERANCES
        for count in (matched(reference, estimated, tolerance), len(estimated), len(reference))
    ]
    return counts, [beat.f_measure(*trimmed, f_measure_threshold=limit) for limit in TOLERANCES]


def matched(reference: np.ndarray, estimated: np.ndarray, tolerance: float) -> int:
    """Count the most pairs of events at most `tolerance` apart, each event in one pair.

    Both are ascending. All tolerances are equal, so taking the earliest free event is optimal;
    mir_eval's `match_events` finds as many, more slowly.
    """
    first = np.searchsorted(reference, estimated - tolerance, side="left").tolist()
    stop = np.searchsorted(reference, estimated + tolerance, side="right").tolist()
    free = pairs = 0
    for low, high in zip(first, stop, strict=True):
        place = max(low, free)
        if place < high:
            pairs += 1
            free = place + 1
    return pairs


def _mean(weights: np.ndarray, values: np.ndarray) -> np.ndarray:
    return weights @ values / weights.sum(axis=1)


def _r2(predictions: Predictions, weights: np.ndarray) -> np.ndarray:
    """Compute R2: `[weightings, targets]`; NaN where a target does not vary."""
    truth = predictions.targets
    deviation = truth - truth.mean(axis=0)
    unit = np.abs(deviation).max(axis=0)
    unit[unit == 0] = 1
    # In units of the largest deviation, so that no square underflows or overflows.
    deviation, error = deviation / unit, (predictions.outputs - truth) / unit
    total = weights.sum(axis=1, keepdims=True)
    mean = weights @ deviation / total
    spread = np.stack(
        [
            (weights * np.square(column - centre[:, None])).sum(axis=1)
            for column, centre in zip(deviation.T, mean.T, strict=True)
        ],
        axis=1,
    )
    spread[spread <= _CONSTANT_VARIANCE * total] = np.nan
    return 1 - weights @ np.square(error) / spread
