"""K-means on more frames than fit: one pass in batches that are held one at a time.

The first batch is fitted as `kmeans` does. Each further one moves every centroid to the mean of all
frames that were nearest to it when they came, as in D. Sculley's web-scale K-means (2010). Batches
are of whole tracks in random order, so that none is of one album alone.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace

import numpy as np

from music_ssl_fairseq.errors import AudioError
from music_ssl_fairseq.label import kmeans
from music_ssl_fairseq.label.backends import Backend
from music_ssl_fairseq.label.kmeans import Fit, Options, sums_of_units


@dataclass(frozen=True)
class Progress:
    """What there is after some batches.

    Attributes:
        fit: centroids; its curve goes on with the mean squared distance of each further batch's
            frames to the centroids before them.
        counts: `[k]` frames that each centroid is the mean of.
        batches: used so far.
        frames: in them.
    """

    fit: Fit
    counts: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    batches: int = 0
    frames: int = 0


def fit_batches(
    batches: Iterator[np.ndarray],
    options: Options,
    backend: Backend,
    watch: Callable[[Progress], None],
    begun: Progress | None = None,
) -> Progress:
    """Cluster frames batch by batch.

    Args:
        batches: `[n, D]` float32 each, n at least `options.k` in the first: those that `begun` has
            not seen.
        watch: called after each batch.
        begun: what `watch` was called with last.
    """
    state = begun or Progress(Fit(np.zeros((0, 0), np.float32)))
    for frames in batches:
        if state.batches == 0:
            state = _first(frames, options, backend)
        elif len(frames):
            state = _further(frames, state, backend)
        watch(state)
    return state


def _first(frames: np.ndarray, options: Options, backend: Backend) -> Progress:
    order = np.random.default_rng(options.seed).permutation(len(frames))
    fit = kmeans.fit(frames[order], options, backend, lambda _: None)
    _, units = backend.two_nearest(frames, fit.centroids)
    return Progress(fit, np.bincount(units, minlength=options.k), 1, len(frames))


def _further(frames: np.ndarray, state: Progress, backend: Backend) -> Progress:
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
