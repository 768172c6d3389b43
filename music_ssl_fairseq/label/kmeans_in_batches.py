"""K-means on more frames than fit: centroids of a sample, and then all frames in one pass.

The sample is fitted as `kmeans` does. Each batch after it moves every centroid to the mean of all
frames that were nearest to it when they came, those of the sample included, as in D. Sculley's
web-scale K-means (2010).
"""

from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

import numpy as np

from music_ssl_fairseq.label.kmeans import KMeansState
from music_ssl_fairseq.label.nearest_centroid import make_nearest
from music_ssl_fairseq.label.sample import Sample, SampledTrack

SLICE_FRAMES = 1000
"""Frames of a track that stay together, ten seconds and more. A batch of whole tracks would hold a
few dozen tracks, and single frames would have to be read one by one, in every batch again."""


class Batches:
    """Slices of tracks, in random order, in batches of at most `size` frames.

    Held in memory are the places of the slices, and their frames only of the batch asked for.
    `sizes` are the `[batches]` frames of each.
    """

    def __init__(self, sample: Sample, size: int):
        self._sample = sample
        self._slice = min(SLICE_FRAMES, size)
        counts = -(-sample.quotas // self._slice)
        tracks = np.repeat(np.arange(len(counts)), counts)
        numbers = np.arange(len(tracks)) - np.repeat(np.cumsum(counts) - counts, counts)
        order = np.random.default_rng(sample.seed).permutation(len(tracks))
        self._tracks, self._numbers = tracks[order], numbers[order]
        left = sample.quotas[self._tracks] - self._numbers * self._slice
        ends = np.cumsum(np.minimum(left, self._slice))
        edges, frames = [0], [0]
        while edges[-1] < len(ends):
            edges.append(int(np.searchsorted(ends, frames[-1] + size, "right")))
            frames.append(int(ends[edges[-1] - 1]))
        self._edges = edges
        self.sizes = np.diff(frames)

    def __len__(self) -> int:
        return len(self.sizes)

    def num_parts(self, batch: int) -> int:
        """Count the parts of a batch: one per track."""
        return len(np.unique(self._tracks[self._edges[batch] : self._edges[batch + 1]]))

    def parts(self, batch: int) -> Iterator[SampledTrack]:
        """Yield the parts of a batch, track by track in the manifest's order."""
        inside = slice(self._edges[batch], self._edges[batch + 1])
        tracks, numbers = self._tracks[inside], self._numbers[inside]
        order = np.lexsort((numbers, tracks))
        tracks, firsts = tracks[order], numbers[order] * self._slice
        edges = np.flatnonzero(np.diff(tracks, prepend=-1))
        for track, own in zip(tracks[edges].tolist(), np.split(firsts, edges[1:]), strict=True):
            whole = self._sample.part(track)
            frames = [whole.frames[first : first + self._slice] for first in own.tolist()]
            yield whole._replace(frames=np.concatenate(frames))


class Progress(NamedTuple):
    """The state after some batches, as arrays of one file (`jobs.checkpoint_dir`)."""

    centroids: np.ndarray  # `[k, D]` float32
    # The sample's (`KMeansState`), and then the mean squared distance of each batch's frames to
    # the centroids before it
    curve: np.ndarray
    coarse: np.ndarray  # the sample's
    counts: np.ndarray  # `[k]` frames that each centroid is the mean of
    fitted_by: str  # the library, with its version
    batches: int = 0  # used so far
    frames: int = 0  # in them


def begin(fit: KMeansState, frames: np.ndarray, device: str, fitted_by: str = "") -> Progress:
    """Return the state before the first batch, from a fit of `frames` `[n, D]`."""
    units = make_nearest(fit.centroids, device)(frames)
    counts = np.bincount(units, minlength=len(fit.centroids))
    return Progress(fit.centroids, fit.curve, fit.coarse, counts, fitted_by)


def fit_batches(
    batches: Iterable[np.ndarray], device: str, watch: Callable[[Progress], None], state: Progress
) -> Progress:
    """Continue batch by batch.

    Args:
        batches: `[n, D]` float32 each, beginning with the first that `state` has not seen.
        device: `cpu` or a GPU, as torch names it.
        watch: called after each batch.
        state: what `begin` returned, or `watch` was called with last.
    """
    for frames in batches:
        moved = _moved(frames, state, device) if len(frames) else state
        state = moved._replace(batches=state.batches + 1)
        watch(state)
    return state


def _moved(frames: np.ndarray, state: Progress, device: str) -> Progress:
    centroids = state.centroids
    units = make_nearest(centroids, device)(frames)
    inertia = np.square(frames - centroids[units]).mean(axis=0, dtype=np.float64).sum()
    order = np.argsort(units, kind="stable")
    used, firsts = np.unique(units[order], return_index=True)
    sums = np.zeros(centroids.shape)  # of each unit's frames
    sums[used] = np.add.reduceat(frames[order], firsts, axis=0, dtype=np.float64)
    total = state.counts + np.bincount(units, minlength=len(centroids))
    moved = (centroids * state.counts[:, None] + sums) / np.maximum(1, total)[:, None]
    moved[total == 0] = centroids[total == 0]
    return state._replace(
        centroids=moved.astype(np.float32),
        curve=np.append(state.curve, inertia),
        counts=total,
        frames=state.frames + len(frames),
    )
