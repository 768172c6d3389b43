"""Confidence intervals by bootstrap: the files of a split are drawn again, with replacement.

A metric of the resamples may be higher on average than the metric itself: a rare tag's average
precision is, because positive examples drawn twice stand one behind the other. The quantiles are
shifted by that bias. A test simulates test sets of known figures, and counts how often the
interval of each metric holds them.

What is drawn are songs, with all their clips, where a task says which clips are of one song: clips
of a song are not independent. An interval says how much a figure depends on which files are in the
test split; not on the training, and not on the choice of the layer.
"""

import numpy as np

from music_ssl_fairseq.probing.metrics import statistic
from music_ssl_fairseq.probing.predictions import Predictions

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
    """Percentile interval of a metric, shifted by the bias of the resamples.

    Args:
        metric: a name of `metrics.evaluate`.
        classes, targets: of the task.
        share: of the resamples that lie within.

    Returns:
        Both ends, within what the metric can be; NaN if the metric itself is.
    """
    groups = predictions.num_groups
    point = statistic(metric, predictions, np.ones((1, groups), np.int64), classes, targets)[0]
    if not np.isfinite(point):
        return float("nan"), float("nan")
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
    values = values[np.isfinite(values)]
    if not len(values):
        return float("nan"), float("nan")
    ends = np.quantile(values, [(1 - share) / 2, (1 + share) / 2]) - (values.mean() - point)
    low, high = np.clip(ends, -np.inf if metric.startswith("r2") else 0.0, 1.0)
    return float(low), float(high)
