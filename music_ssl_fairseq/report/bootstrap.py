"""Confidence intervals by bootstrap: the files of a split are drawn again, with replacement.

What is drawn are songs, with all their clips, where a task says which clips are of one song: clips
of a song are not independent. An interval says how much a figure depends on which files are in the
test split; not on the training, and not on the choice of the layer.
"""

import numpy as np

from music_ssl_fairseq.probing.metrics import group_outputs, key_scores
from music_ssl_fairseq.probing.predictions import Predictions
from music_ssl_fairseq.probing.ranking import RANKINGS, macro

_AT_ONCE = 2_000_000  # weights held at a time


def interval(
    metric: str,
    predictions: Predictions,
    classes: tuple[str, ...] = (),
    targets: tuple[str, ...] = (),
    resamples: int = 1000,
    seed: int = 0,
    share: float = 0.95,
) -> tuple[float, float]:
    """Percentile interval of a metric.

    Args:
        metric: a name of `metrics.evaluate`.
        classes, targets: of the task.
        share: of the resamples that lie within.
    """
    groups = int(predictions.group_index.max()) + 1
    rng = np.random.default_rng(seed)
    step = max(1, _AT_ONCE // max(groups, len(predictions.names)))
    values = np.concatenate(
        [
            statistic(
                metric,
                predictions,
                rng.multinomial(groups, np.full(groups, 1 / groups), min(step, resamples - first)),
                classes,
                targets,
            )
            for first in range(0, resamples, step)
        ]
    )
    low, high = np.nanquantile(values, [(1 - share) / 2, (1 + share) / 2])
    return float(low), float(high)


def statistic(
    metric: str,
    predictions: Predictions,
    counts: np.ndarray,
    classes: tuple[str, ...] = (),
    targets: tuple[str, ...] = (),
) -> np.ndarray:
    """A metric of each resample, all ones for the metric itself.

    Args:
        counts: `[resamples, groups]`, how often each song was drawn.

    Returns:
        `[resamples]`.
    """
    weights = counts[:, predictions.group_index].astype(np.float64)
    if metric in RANKINGS:
        return macro(metric, predictions.outputs, predictions.targets, weights)
    if metric.startswith("r2"):
        each = _r2(predictions, weights)
        return each.mean(axis=1) if metric == "r2" else each[:, targets.index(metric[3:])]
    if metric.startswith("f_measure"):
        return _f_measure(metric, predictions, weights)
    table = key_scores(classes) if "key_score" in metric else np.eye(len(classes))
    outputs, labels = predictions.outputs, predictions.targets
    if metric.startswith("group_"):
        weights = counts.astype(np.float64)
        outputs, labels = group_outputs(predictions)
    return _mean(weights, table[labels, outputs.argmax(-1)])


def _mean(weights: np.ndarray, values: np.ndarray) -> np.ndarray:
    return weights @ values / weights.sum(axis=1)


def _r2(predictions: Predictions, weights: np.ndarray) -> np.ndarray:
    """`[resamples, targets]`."""
    truth = predictions.targets
    total = weights.sum(axis=1, keepdims=True)
    residual = weights @ np.square(predictions.outputs - truth)
    mean = weights @ truth / total
    spread = weights @ np.square(truth) - total * np.square(mean)
    return 1 - residual / np.maximum(spread, 1e-12)


def _f_measure(metric: str, predictions: Predictions, weights: np.ndarray) -> np.ndarray:
    place = int(metric.endswith("_20ms"))
    if "per_file" in metric:
        return _mean(weights, predictions.targets[:, place])
    found, claimed, annotated = (weights @ predictions.outputs)[:, 3 * place : 3 * place + 3].T
    return 2 * found / np.maximum(1, claimed + annotated)
