"""K-means on more frames than fit: centroids of a sample, and then all others in one pass.

The sample is fitted as `kmeans` does. Each batch after it moves every centroid to the mean of all
frames that were nearest to it when they came, those of the sample included, as in D. Sculley's
web-scale K-means (2010).
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

import numpy as np

from music_ssl_fairseq.errors import AudioError
from music_ssl_fairseq.label.backends import Backend
from music_ssl_fairseq.label.kmeans import Fit, sums_of_units


@dataclass(frozen=True)
class Progress:
    """What there is after some batches.

    Attributes:
        fit: centroids; its curve goes on with the mean squared distance of each batch's frames to
            the centroids before it.
        counts: `[k]` frames that each centroid is the mean of.
        batches: used so far.
        frames: in them.
    """

    fit: Fit
    counts: np.ndarray
    batches: int = 0
    frames: int = 0


def begin(fit: Fit, frames: np.ndarray, backend: Backend) -> Progress:
    """Before the first batch.

    Args:
        fit: of `frames` `[n, D]`.
    """
    _, units = backend.two_nearest(frames, fit.centroids)
    return Progress(fit, np.bincount(units, minlength=len(fit.centroids)))


def fit_batches(
    batches: Iterable[np.ndarray],
    backend: Backend,
    watch: Callable[[Progress], None],
    state: Progress,
) -> Progress:
    """Go on batch by batch.

    Args:
        batches: `[n, D]` float32 each: those that `state` has not seen.
        watch: called after each batch.
        state: what `begin` gave, or `watch` was called with last.
    """
    for frames in batches:
        if len(frames):
            state = _moved(frames, state, backend)
        else:
            state = replace(state, batches=state.batches + 1)
        watch(state)
    return state


def _moved(frames: np.ndarray, state: Progress, backend: Backend) -> Progress:
    fit = state.fit
    distances, units = backend.two_nearest(frames, fit.centroids)
    sums, counts = sums_of_units(frames, units, len(fit.centroids))
    total = state.counts + counts
    moved = (fit.centroids * state.counts[:, None] + sums) / np.maximum(1, total)[:, None]
    moved[total == 0] = fit.centroids[total == 0]
    curve = [*fit.curve, float(distances[:, 0].mean(dtype=np.float64))]
    return Progress(
        replace(fit, centroids=moved.astype(np.float32), curve=curve),
        total,
        state.batches + 1,
        state.frames + len(frames),
    )


def readable(results: list[np.ndarray | AudioError], skip: bool) -> list[np.ndarray]:
    """Those that could be read.

    Raises:
        AudioError: the first that could not, unless `skip`.
    """
    errors = [found for found in results if isinstance(found, AudioError)]
    if errors and not skip:
        raise errors[0]
    return [found for found in results if not isinstance(found, AudioError)]
