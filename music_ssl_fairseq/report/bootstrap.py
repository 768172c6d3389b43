"""Confidence intervals by bootstrap: the files of a split are drawn again, with replacement.

A metric of the resamples may be higher on average than the metric itself: a rare tag's average
precision is, because positive examples drawn twice stand one behind the other. The quantiles of
rankings are shifted by that bias. Other metrics have none worth mentioning; R2 of a few files has
resamples of almost one value, whose huge negative scores would spoil the mean. A test simulates
test sets of known figures, and counts how often the interval of each metric holds them.

What is drawn are songs, with all their clips, where a task says which clips are of one song: clips
of a song are not independent. An interval says how much a figure depends on which files are in the
test split; not on the training, and not on the choice of the layer.
"""

from collections.abc import Iterator
from itertools import chain

import numpy as np

from music_ssl_fairseq.probing.scoring.metrics import statistic
from music_ssl_fairseq.probing.scoring.predictions import Predictions
from music_ssl_fairseq.probing.scoring.ranking import RANKINGS

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
    """Percentile interval of a metric; of a ranking, shifted by the bias of the resamples.

    Args:
        metric: a name of `metrics.evaluate`.
        classes, targets: of the task.
        share: of the resamples that lie within.

    Returns:
        Both ends, within what the metric can be; NaN if the metric itself is.
    """
    values = _resampled(metric, predictions, classes, targets, resamples, seed)
    low, high = _ends(metric, values, share)
    least = -np.inf if metric.startswith("r2") else 0.0
    return float(np.clip(low, least, 1.0)), float(np.clip(high, least, 1.0))


def difference(
    metric: str,
    one: Predictions,
    other: Predictions,
    classes: tuple[str, ...] = (),
    targets: tuple[str, ...] = (),
    resamples: int = 1000,
    seed: int = 0,
    share: float = 0.95,
) -> tuple[float, float, float]:
    """What `one` has more than `other`, with the ends of its interval: both are scored on the same
    draws of the same clips, so that the difference is surer than either figure."""
    values = _resampled(metric, one, classes, targets, resamples, seed)
    values -= _resampled(metric, other, classes, targets, resamples, seed)
    return (float(values[0]), *_ends(metric, values, share))


def _resampled(
    metric: str,
    predictions: Predictions,
    classes: tuple[str, ...],
    targets: tuple[str, ...],
    resamples: int,
    seed: int,
) -> np.ndarray:
    """The metric of the split as it is, then of each resample: `[1 + resamples]`."""
    once = np.ones((1, predictions.num_groups), np.int64)
    return np.concatenate(
        [
            statistic(metric, predictions, counts, classes, targets)
            for counts in chain([once], draws(predictions, resamples, seed))
        ]
    )


def _ends(metric: str, values: np.ndarray, share: float) -> tuple[float, float]:
    """Of the interval, from the metric itself and those of the resamples."""
    point, drawn = values[0], values[1:][np.isfinite(values[1:])]
    if not (np.isfinite(point) and len(drawn)):
        return float("nan"), float("nan")
    bias = drawn.mean() - point if metric in RANKINGS else 0.0
    low, high = np.quantile(drawn, [(1 - share) / 2, (1 + share) / 2]) - bias
    return float(low), float(high)


def draws(predictions: Predictions, resamples: int, seed: int) -> Iterator[np.ndarray]:
    """How often each song is drawn, `[some resamples, groups]` at a time."""
    groups = predictions.num_groups
    rng = np.random.default_rng(seed)
    step = max(1, _AT_ONCE // max(groups, len(predictions.names)))
    for first in range(0, resamples, step):
        yield rng.multinomial(groups, np.full(groups, 1 / groups), min(step, resamples - first))
