"""Compute ROC-AUC and average precision for many weightings of the same examples at once.

The bootstrap weighs each example by how often it was drawn; weights of one give the metric itself.
A test compares both with scikit-learn.
"""

from collections.abc import Callable

import numpy as np


def _steps(
    scores: np.ndarray, positive: np.ndarray, weights: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Count true and false positives that each distinct threshold adds, from the highest down.

    Of consecutive thresholds without a positive example only the lowest is kept: no curve bends
    between them.
    """
    order = np.argsort(-scores, kind="stable")
    ordered, hit = scores[order], positive[order]
    starts = np.flatnonzero(np.concatenate([[True], ordered[1:] != ordered[:-1]]))
    bends = np.logical_or.reduceat(hit, starts)
    starts = starts[np.concatenate([[True], bends[:-1] | bends[1:]])]
    taken = weights[:, order]
    true = np.add.reduceat(taken * hit, starts, axis=1)
    return true, np.add.reduceat(taken * ~hit, starts, axis=1)


def roc_auc(scores: np.ndarray, positive: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Compute the area under the ROC curve for each weighting.

    From scores `[N]`, positive `[N]` bool and weights `[W, N]` of at least 0 to `[W]`; NaN where
    there are no positive or no negative examples.
    """
    rises, widths = _steps(scores, positive, weights)
    true, false = np.cumsum(rises, axis=1), widths.sum(axis=1)
    with np.errstate(invalid="ignore"):
        return (widths * (true - rises / 2)).sum(axis=1) / (true[:, -1] * false)


def average_precision(scores: np.ndarray, positive: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Average the precision over the steps of recall; NaN without positive examples.

    Arguments and result as of `roc_auc`.
    """
    rises, widths = _steps(scores, positive, weights)
    true, claimed = np.cumsum(rises, axis=1), np.cumsum(rises + widths, axis=1)
    precision = np.divide(true, claimed, out=np.zeros_like(true), where=claimed > 0)
    with np.errstate(invalid="ignore"):
        return (rises * precision).sum(axis=1) / true[:, -1]


RANKINGS: dict[str, Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]] = {
    "macro_roc_auc": roc_auc,
    "macro_average_precision": average_precision,
}


def macro(name: str, scores: np.ndarray, targets: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Average over the classes with both positive and negative examples; NaN without any.

    From a key of `RANKINGS`, scores `[N, classes]`, targets `[N, classes]` bool and weights
    `[W, N]` to `[W]`. A class without a positive example in a weighting is left out of its mean.
    """
    values = by_class(name, scores, targets, weights)
    known = ~np.isnan(values)
    with np.errstate(invalid="ignore"):
        return np.nansum(values, axis=1) / known.sum(axis=1)


def by_class(name: str, scores: np.ndarray, targets: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Compute the metric of each class with both kinds of examples: `[W, present classes]`."""
    present = np.flatnonzero(present_classes(targets))
    values = [RANKINGS[name](scores[:, c], targets[:, c], weights) for c in present]
    return np.stack(values, axis=1) if values else np.zeros((len(weights), 0))


def present_classes(targets: np.ndarray) -> np.ndarray:
    """Find the classes with positive and negative examples: `[N, classes]` to `[classes]` bool."""
    return np.logical_and(targets.any(axis=0), ~targets.all(axis=0))
