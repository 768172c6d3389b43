"""ROC-AUC and average precision of many weightings of the same examples at once.

Weightings are the bootstrap's, which counts each example as often as it was drawn; one of ones is
the metric itself. A test holds both to scikit-learn.
"""

from collections.abc import Callable

import numpy as np


def _counts(
    scores: np.ndarray, positive: np.ndarray, weights: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """True and false positives at each distinct threshold, from the highest down.

    Of thresholds in a row that no positive example has, the lowest: between them no curve bends.
    """
    order = np.argsort(-scores, kind="stable")
    ordered, hit = scores[order], positive[order]
    ends = np.flatnonzero(np.append(ordered[1:] != ordered[:-1], True))
    bends = np.logical_or.reduceat(hit, np.append(0, ends[:-1] + 1))
    ends = ends[bends | np.append(bends[1:], True)]
    starts = np.append(0, ends[:-1] + 1)
    taken = weights[:, order]
    true = np.add.reduceat(taken * hit, starts, axis=1)
    false = np.add.reduceat(taken * ~hit, starts, axis=1)
    return np.cumsum(true, axis=1), np.cumsum(false, axis=1)


def roc_auc(scores: np.ndarray, positive: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Area under the curve for each weighting.

    Args:
        scores: `[N]`.
        positive: `[N]` bool.
        weights: `[W, N]` at least 0.

    Returns:
        `[W]`; NaN where there are no positive or no negative examples.
    """
    true, false = _counts(scores, positive, weights)
    steps = np.diff(false, axis=1, prepend=0)
    heights = true - np.diff(true, axis=1, prepend=0) / 2
    with np.errstate(invalid="ignore"):
        return (steps * heights).sum(axis=1) / (true[:, -1] * false[:, -1])


def average_precision(scores: np.ndarray, positive: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Precision averaged over the recall's steps, as `roc_auc`; NaN without positive examples."""
    true, false = _counts(scores, positive, weights)
    with np.errstate(invalid="ignore"):
        precision = np.nan_to_num(true / (true + false))
        return (np.diff(true, axis=1, prepend=0) * precision).sum(axis=1) / true[:, -1]


RANKINGS: dict[str, Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]] = {
    "macro_roc_auc": roc_auc,
    "macro_average_precision": average_precision,
}


def macro(
    name: str, scores: np.ndarray, targets: np.ndarray, weights: np.ndarray | None = None
) -> np.ndarray:
    """Mean over the classes that have both positive and negative examples; NaN without any.

    Args:
        name: of `RANKINGS`.
        scores: `[N, classes]`.
        targets: `[N, classes]` bool.
        weights: `[W, N]`, by default one of ones.

    Returns:
        `[W]`; where a class has no positive example of any weight, over the others.
    """
    values = by_class(name, scores, targets, weights)
    known = ~np.isnan(values)
    with np.errstate(invalid="ignore"):
        return np.nansum(values, axis=1) / known.sum(axis=1)


def by_class(
    name: str, scores: np.ndarray, targets: np.ndarray, weights: np.ndarray | None = None
) -> np.ndarray:
    """The same of each of these classes: `[W, present classes]`, in their order."""
    weights = np.ones((1, len(scores))) if weights is None else weights
    present = np.flatnonzero(present_classes(targets))
    if not len(present):
        return np.zeros((len(weights), 0))
    values = [RANKINGS[name](scores[:, c], targets[:, c], weights) for c in present]
    return np.stack(values, axis=1)


def present_classes(targets: np.ndarray) -> np.ndarray:
    """`[N, classes]` bool to `[classes]` bool: has positive and negative examples."""
    return np.logical_and(targets.any(axis=0), ~targets.all(axis=0))
