"""Which frames K-means is fitted on: a seeded sample over all tracks, in proportion to length.

If the tracks hold no more frames than asked for, all are taken. Otherwise each track is cut into as
many equal strata as frames are wanted of it, and each stratum gives one frame at random: single
frames, because neighbours are much alike. For k = 500, 100,000 frames in spans of 5 make an inertia
1.5 % higher on other frames of the same music, in spans of 25 4.3 %. What lies far from any frame
wanted is not decoded.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from music_ssl_fairseq.data.manifest import Manifest
from music_ssl_fairseq.features import Features, front_end
from music_ssl_fairseq.features.track import Track, check_length, track_features
from music_ssl_fairseq.frames import FrameGrid

_NEAR = 500  # frames between two wanted ones below which decoding on is cheaper than seeking
_READ = 6000  # frames read at once at most: a minute of MFCC, 4 MB of audio


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


def places(num_frames: int, quota: int, seed: int, index: int) -> np.ndarray:
    """Which frames of a track make up its quota: `[quota]` int64, ascending.

    Args:
        quota: from 1 to `num_frames`.
        index: the track's place in the manifest; with `seed`, all that the choice depends on.
    """
    strata = np.arange(quota + 1) * num_frames // quota
    return np.random.default_rng((seed, index)).integers(strata[:-1], strata[1:])


class Sample:
    """The frames to take from a manifest's tracks.

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
        """One item for each track that gives any frame, in the manifest's order."""
        for index in np.flatnonzero(self.quotas).tolist():
            track = Track(self.manifest.path(index), int(self.manifest.num_samples[index]))
            quota = int(self.quotas[index])
            yield Part(track, places(int(self.num_frames[index]), quota, self.seed, index))


@dataclass(frozen=True)
class Reader:
    """The job of a worker: a part to its features, `[frames, dimension]` float32."""

    features: Features

    def __call__(self, part: Part) -> np.ndarray:
        check_length(part.track)
        front = front_end(self.features)
        blocks = []
        for run in _runs(part.frames):
            start, stop = int(run[0]), int(run[-1]) + 1
            blocks.append(track_features(front, part.track, start, stop)[run - start])
        return np.concatenate(blocks)


def _runs(frames: np.ndarray) -> Iterator[np.ndarray]:
    """Frames that are read together: near each other, and not too much at once."""
    for near in np.split(frames, np.flatnonzero(np.diff(frames) > _NEAR) + 1):
        read = (near - near[0]) // _READ
        yield from np.split(near, np.flatnonzero(np.diff(read)) + 1)
