"""Which frames K-means is fitted on: a seeded sample over all tracks, in proportion to length.

If the tracks hold no more frames than asked for, all are taken. Otherwise each track is cut into as
many equal strata as frames are wanted of it, and each stratum gives one frame at random: single
frames, because neighbours are much alike. For k = 500, 100,000 frames in spans of 5 make an inertia
1.5 % higher on other frames of the same music, in spans of 25 4.3 %.

Of a large corpus that would be a frame every few seconds, and to compute these would take as long
as to label all. Where frames would lie more than a second apart, only some spans of each track are
therefore heard, of as many frames as are computed together anyway (`FrontEnd.together`), and of
these a frame a second is taken. For k = 100 and 8,000 MFCC frames, 10 s at a time, that makes the
inertia 0.7 % higher on the same tracks, and no higher on others; the more frames there are for a
cluster, the less. What lies far from any frame wanted is not decoded.

That each track's length is known beforehand makes the sample exact, where a reservoir would have to
read all frames to keep some; and as a track's frames follow from the seed and its place in the
manifest alone, blocks of tracks can be sampled in any order, by any number of processes.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from music_ssl_fairseq.data.manifest import Manifest
from music_ssl_fairseq.errors import AudioError
from music_ssl_fairseq.features import FrontEnd
from music_ssl_fairseq.features.chunk_features import FeatureJob, Request
from music_ssl_fairseq.features.track import Track

_APART = 1.0  # seconds between frames of a span


class Part(NamedTuple):
    """What is wanted of one track: `[n]` int64 frames, ascending."""

    track: Track
    frames: np.ndarray


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


class Spans(NamedTuple):
    """How long tracks are sampled of which few frames are wanted.

    Attributes:
        together: frames of a span.
        apart: how far apart the frames taken from it are, about.
    """

    together: int
    apart: int


def places(
    num_frames: int, quota: int, seed: int, index: int, spans: Spans | None = None
) -> np.ndarray:
    """Which frames of a track make up its quota: `[quota]` int64, ascending.

    Args:
        quota: from 1 to `num_frames`.
        index: the track's place in the manifest; with `seed`, all that the choice depends on.
        spans: None for frames all over the track.
    """
    rng = np.random.default_rng((seed, index))
    if spans is None or quota * spans.apart >= num_frames:
        return _one_of_each(rng, 0, num_frames, quota)
    count = max(1, num_frames // spans.together)
    wanted = min(count, -(-quota * spans.apart // spans.together))
    shares = np.diff(np.arange(wanted + 1) * quota // wanted)
    heard = _one_of_each(rng, 0, count, wanted)
    edges = np.arange(count + 1) * num_frames // count
    return np.concatenate(
        [
            _one_of_each(rng, edges[span], edges[span + 1], share)
            for span, share in zip(heard.tolist(), shares.tolist(), strict=True)
        ]
    )


def _one_of_each(rng: np.random.Generator, first: int, last: int, count: int) -> np.ndarray:
    """A number out of each of `count` strata of `[first, last)`."""
    strata = first + np.arange(count + 1) * (last - first) // count
    return rng.integers(strata[:-1], strata[1:])


class Sample:
    """The frames to take from a manifest's tracks.

    Args:
        front: of the features.
        max_frames: frames to take at most.

    Attributes:
        quotas: `[tracks]` frames to take from each.
    """

    def __init__(self, manifest: Manifest, front: FrontEnd, max_frames: int, seed: int):
        self.manifest = manifest
        self.num_frames = np.array(
            [front.grid.num_frames(n) for n in manifest.num_samples.tolist()]
        )
        self._spans = Spans(front.together, round(_APART * front.frame_rate))
        self.quotas = quotas(self.num_frames, max_frames, seed)
        self.seed = seed

    @property
    def total(self) -> int:
        """Frames to take in all."""
        return int(self.quotas.sum())

    def part(self, index: int) -> Part:
        """What is wanted of a track, which may be nothing."""
        track = Track(self.manifest.path(index), int(self.manifest.num_samples[index]))
        quota = int(self.quotas[index])
        if not quota:
            return Part(track, np.zeros(0, np.int64))
        num_frames = int(self.num_frames[index])
        return Part(track, places(num_frames, quota, self.seed, index, self._spans))


@dataclass(frozen=True)
class Reader(FeatureJob):
    """The job of a worker: parts to their features."""

    def requests(self, item: list[Part]) -> list[Request]:
        """What lies between the frames of some parts."""
        return [
            Request(part.track, int(run[0]), int(run[-1]) + 1, run)
            for part in item
            for run in self._runs(part)
        ]

    def collect(self, item: list[Part], features: Iterator) -> list[np.ndarray | AudioError]:
        """`[frames, dimension]` float32 of each part, or why it cannot be read."""
        return [self._rows(part, features) for part in item]

    def _runs(self, part: Part) -> Iterator[np.ndarray]:
        front = self.front
        return _runs(part.frames, front.piece_frames, front.together // 2)

    def _rows(self, part: Part, read: Iterator) -> np.ndarray | AudioError:
        rows, error = [np.empty((0, self.front.dimension), np.float32)], None
        for _ in self._runs(part):
            found = next(read)
            if isinstance(found, AudioError):
                error = error or found
            else:
                rows.append(_as_array(found))
        return error or np.concatenate(rows)


def _as_array(rows) -> np.ndarray:
    return rows if isinstance(rows, np.ndarray) else rows.cpu().numpy()


def _runs(frames: np.ndarray, size: int, near: int) -> Iterator[np.ndarray]:
    """Frames that are read together: near each other, and not too much at once."""
    if not len(frames):
        return
    for close in np.split(frames, np.flatnonzero(np.diff(frames) > near) + 1):
        read = (close - close[0]) // size
        yield from np.split(close, np.flatnonzero(np.diff(read)) + 1)
