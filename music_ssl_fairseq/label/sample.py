"""Which frames K-means is fitted on: a seeded sample over all tracks, in proportion to length.

If the tracks hold no more frames than asked for, all are taken. Otherwise each track is cut into
equal strata, and from each stratum comes one span of consecutive frames at a random place. Spans
keep reading cheap: what lies far from any of them is never decoded. They are short, because
neighbouring frames overlap and say little that is new.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from music_ssl_fairseq.data.manifest import Manifest
from music_ssl_fairseq.features import front_end
from music_ssl_fairseq.features.track import Track, check_length, track_features
from music_ssl_fairseq.frames import FrameGrid

SPAN = 25
"""Frames. A quarter of a second of MFCC."""

_NEAR = 500  # frames between two spans below which decoding on is cheaper than seeking
_READ = 6000  # frames read at once at most: a minute of MFCC, 4 MB of audio


class Part(NamedTuple):
    """Spans of one track: `[spans, 2]` int64, first frame and the one after the last."""

    track: Track
    spans: np.ndarray


def quotas(num_frames: np.ndarray, max_frames: int, seed: int) -> np.ndarray:
    """Frames to take from each track: `[tracks]` int64, in sum `min(max_frames, all)`.

    Each track's share is its length's, rounded up or down at random such that the sum holds.

    Args:
        num_frames: `[tracks]` frames each track has.
    """
    total = int(num_frames.sum())
    if total <= max_frames:
        return num_frames.astype(np.int64)
    offset = np.random.default_rng(seed).random()
    edges = np.floor(np.cumsum(num_frames) * (max_frames / total) + offset).astype(np.int64)
    return np.diff(edges, prepend=0)


def spans(num_frames: int, quota: int, seed: int, index: int) -> np.ndarray:
    """Where in a track its quota is taken: `[spans, 2]` int64, in order and not overlapping.

    Args:
        quota: frames, from 1 to `num_frames`.
        index: the track's place in the manifest; with `seed`, all that the places depend on.
    """
    count = -(-quota // SPAN)
    # The frames not taken are dealt out to the strata, so that none has less than it gives.
    sizes = np.diff(np.arange(count + 1) * quota // count)
    spare = np.diff(np.arange(count + 1) * (num_frames - quota) // count)
    starts = np.cumsum(sizes + spare) - sizes - spare
    first = starts + np.random.default_rng((seed, index)).integers(0, spare + 1)
    return np.stack([first, first + sizes], axis=1)


class Sample:
    """The spans of all tracks of a manifest.

    Args:
        grid: of the features' frames.
        max_frames: frames to take at most.
    """

    def __init__(self, manifest: Manifest, grid: FrameGrid, max_frames: int, seed: int):
        self.manifest = manifest
        self.num_frames = np.array([grid.num_frames(n) for n in manifest.num_samples.tolist()])
        self.quotas = quotas(self.num_frames, max_frames, seed)
        self.seed = seed

    def empty(self, dimension: int) -> np.ndarray:
        """Room for all its frames: `[n, dimension]` float32."""
        return np.empty((int(self.quotas.sum()), dimension), np.float32)

    def parts(self) -> Iterator[Part]:
        """The spans, one item for each track that gives any frame, in the manifest's order."""
        for index in np.flatnonzero(self.quotas).tolist():
            track = Track(self.manifest.path(index), int(self.manifest.num_samples[index]))
            quota = int(self.quotas[index])
            yield Part(track, spans(int(self.num_frames[index]), quota, self.seed, index))


@dataclass(frozen=True)
class Reader:
    """The job of a worker: a part to its features, `[frames, dimension]` float32."""

    features: str

    def __call__(self, part: Part) -> np.ndarray:
        check_length(part.track)
        front = front_end(self.features)
        pieces = []
        for run in _runs(part.spans):
            start, stop = int(run[0, 0]), int(run[-1, 1])
            block = track_features(front, part.track, start, stop)
            pieces += [block[first - start : last - start] for first, last in run]
        return np.concatenate(pieces)


def _runs(places: np.ndarray) -> Iterator[np.ndarray]:
    """Spans that are read together: near each other, and not too much at once."""
    begin = 0
    for i in range(1, len(places)):
        far = places[i, 0] - places[i - 1, 1] > _NEAR
        if far or places[i, 1] - places[begin, 0] > _READ:
            yield places[begin:i]
            begin = i
    yield places[begin:]
