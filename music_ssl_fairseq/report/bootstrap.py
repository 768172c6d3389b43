"""Compute confidence intervals by bootstrap: draw the songs of a split with replacement.

Songs are drawn with all their clips, because clips of a song are not independent. Without groups,
each file is a song. An interval covers the choice of the test files, but neither the training nor
the choice of the layer.

Resamples of a ranking are biased: positive examples drawn twice stand one behind the other, which
raises the average precision of a rare tag. The quantiles of rankings are shifted by that bias.
Other metrics have little bias. Their mean is no better guide: R2 of a few files has resamples of
almost one value, with huge negative scores. A test simulates test sets with known figures, and
counts how often each metric's interval holds them.
"""

from collections.abc import Iterator
from itertools import chain

import numpy as np

from music_ssl_fairseq.probing.scoring.metrics import statistic
from music_ssl_fairseq.probing.scoring.predictions import Predictions
from music_ssl_fairseq.probing.scoring.ranking import RANKINGS

_WEIGHTS_AT_ONCE = 2_000_000
_INTERVAL_SHARE = 0.95  # of the resamples within the interval


def resampled(
    metric: str,
    predictions: Predictions,
    classes: tuple[str, ...] = (),
    targets: tuple[str, ...] = (),
    resamples: int = 1000,
    seed: int = 0,
) -> np.ndarray:
    """Compute the metric of the split itself, then of each resample: `[1 + resamples]`.

    Predictions of the same clips have the same resamples, so their values may be subtracted.
    """
    once = np.ones((1, predictions.num_groups), np.int64)
    return np.concatenate(
        [
            statistic(metric, predictions, counts, classes, targets)
            for counts in chain([once], draws(predictions, resamples, seed))
        ]
    )


def interval(metric: str, values: np.ndarray) -> tuple[float, float]:
    """Compute the 95 % interval of a metric from its `resampled` values, within its range.

    That of a ranking is shifted by the resamples' bias. NaN if the metric itself is NaN.
    """
    low, high = ends(metric, values)
    least = -np.inf if metric.startswith("r2") else 0.0
    return float(np.clip(low, least, 1.0)), float(np.clip(high, least, 1.0))


def ends(metric: str, values: np.ndarray) -> tuple[float, float]:
    """Compute the ends of a 95 % interval of values, or of their differences, from `resampled`."""
    point, drawn = values[0], values[1:][np.isfinite(values[1:])]
    if not (np.isfinite(point) and len(drawn)):
        return float("nan"), float("nan")
    bias = drawn.mean() - point if metric in RANKINGS else 0.0
    low, high = np.quantile(drawn, [(1 - _INTERVAL_SHARE) / 2, (1 + _INTERVAL_SHARE) / 2]) - bias
    return float(low), float(high)


def draws(predictions: Predictions, resamples: int, seed: int) -> Iterator[np.ndarray]:
    """Yield how often each song is drawn, `[some resamples, groups]` at a time."""
    groups = predictions.num_groups
    rng = np.random.default_rng(seed)
    step = max(1, _WEIGHTS_AT_ONCE // max(groups, len(predictions.names)))
    for first in range(0, resamples, step):
        yield rng.multinomial(groups, np.full(groups, 1 / groups), min(step, resamples - first))
