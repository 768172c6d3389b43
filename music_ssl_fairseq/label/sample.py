"""Choose the frames that K-means is fitted on: a seeded sample over all tracks, by their length.

If the tracks hold no more frames than asked for, all are taken. Otherwise each track is cut into as
many equal strata as it has to give frames, and each stratum gives one frame at random. Single
frames, because neighbours are similar: for k = 500, 100,000 frames in runs of 5 make the inertia
on other frames of the same music 1.5 % higher, in runs of 25 4.3 %.

Of a large corpus that would be one frame every few seconds, and computing them would take as long
as labelling everything. Where frames would lie more than a second apart, only some chunks of each
track are read, each of `FrontEnd.min_chunk_frames` frames, which are computed together anyway.
One frame per second is taken from them. For k = 100 and 8,000 MFCC frames, 10 s at a time, that
makes the inertia 0.7 % higher on the same tracks, and no higher on others; the difference shrinks
with more frames per cluster. Audio far from any chosen frame is not decoded.

Each track's length is known beforehand, so the sample is exact; a reservoir would read all frames
to keep some. A track's frames follow from the seed and its place in the manifest alone, so blocks
of tracks can be sampled in any order, by any number of processes.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from music_ssl_fairseq.data.manifest import Manifest
from music_ssl_fairseq.features import FrontEnd
from music_ssl_fairseq.features.chunk_features import FeatureWork, Request, Track

_SPACING_SECONDS = 1.0  # between frames of a chunk


class SampledTrack(NamedTuple):
    """A track and its sampled frames: `[n]` int64, ascending."""

    track: Track
    frames: np.ndarray


def quotas(num_frames: np.ndarray, max_frames: int, seed: int) -> np.ndarray:
    """Return the number of frames to take from each track: `[tracks]` int64.

    They are in proportion to `num_frames` `[tracks]`, rounded up or down at random such that the
    sum is `max_frames`, or all frames if there are fewer.
    """
    total = int(num_frames.sum())
    if total <= max_frames:
        return num_frames.astype(np.int64)
    offset = np.random.default_rng(seed).random()
    edges = np.floor(np.cumsum(num_frames) * (max_frames / total) + offset).astype(np.int64)
    return np.diff(edges, prepend=0)


def places(
    num_frames: int, quota: int, seed: int, index: int, chunk_frames: int = 1, spacing: int = 1
) -> np.ndarray:
    """Choose the frames of a track that make up its quota: `[quota]` int64, ascending.

    Args:
        quota: from 1 to `num_frames`.
        index: the track's place in the manifest; the choice depends on it and `seed` alone.
        chunk_frames: size of a chunk of a track that gives few; by default they lie all over it.
        spacing: frames from one that is taken to the next within a chunk, about.
    """
    rng = np.random.default_rng((seed, index))
    if quota * spacing >= num_frames:
        return _one_of_each(rng, 0, num_frames, quota)
    count = max(1, num_frames // chunk_frames)
    wanted = min(count, -(-quota * spacing // chunk_frames))
    shares = np.diff(np.arange(wanted + 1) * quota // wanted)
    chosen = _one_of_each(rng, 0, count, wanted)
    edges = np.arange(count + 1) * num_frames // count
    return np.concatenate(
        [
            _one_of_each(rng, edges[chunk], edges[chunk + 1], share)
            for chunk, share in zip(chosen.tolist(), shares.tolist(), strict=True)
        ]
    )


def _one_of_each(rng: np.random.Generator, first: int, last: int, count: int) -> np.ndarray:
    """Draw one number from each of `count` strata of `[first, last)`."""
    strata = first + np.arange(count + 1) * (last - first) // count
    return rng.integers(strata[:-1], strata[1:])


class Sample:
    """A sample of `max_frames` frames of a manifest's tracks; `quotas` `[tracks]` from each."""

    def __init__(self, manifest: Manifest, front: FrontEnd, max_frames: int, seed: int):
        self.manifest = manifest
        self.num_frames = np.array(
            [front.grid.num_frames(n) for n in manifest.num_samples.tolist()]
        )
        self._chunks = front.min_chunk_frames, round(_SPACING_SECONDS * front.grid.rate)
        self.quotas = quotas(self.num_frames, max_frames, seed)
        self.seed = seed

    @property
    def total(self) -> int:
        """The number of frames to take from all tracks."""
        return int(self.quotas.sum())

    def part(self, index: int) -> SampledTrack:
        """Return a track with its sampled frames, perhaps none."""
        track = Track(self.manifest.path(index), int(self.manifest.num_samples[index]))
        quota = int(self.quotas[index])
        if not quota:
            return SampledTrack(track, np.zeros(0, np.int64))
        num_frames = int(self.num_frames[index])
        return SampledTrack(track, places(num_frames, quota, self.seed, index, *self._chunks))


@dataclass(frozen=True)
class SampleFeatures(FeatureWork):
    """Work for a pool: the features of tracks' sampled frames."""

    def requests(self, part: SampledTrack) -> list[Request]:
        """Return requests for a part's frames."""
        runs = _runs(part.frames, self.front.chunk_frames, self.front.min_chunk_frames // 2)
        return [Request(part.track, int(run[0]), int(run[-1]) + 1, run) for run in runs]

    def collect(self, part: SampledTrack, features: Iterator) -> np.ndarray:
        """Return `[frames, dimension]` float32 of a part."""
        none = np.empty((0, self.front.dimension), np.float32)
        arrays = (f if isinstance(f, np.ndarray) else f.cpu().numpy() for f in features)
        return np.concatenate([none, *arrays])


def _runs(frames: np.ndarray, size: int, near: int) -> Iterator[np.ndarray]:
    """Split frames into runs that are read together: near each other, and at most a chunk."""
    if not len(frames):
        return
    for close in np.split(frames, np.flatnonzero(np.diff(frames) > near) + 1):
        read = (close - close[0]) // size
        yield from np.split(close, np.flatnonzero(np.diff(read)) + 1)
