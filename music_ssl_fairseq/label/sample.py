"""Which frames K-means is fitted on: a seeded sample over all tracks, in proportion to length.

If the tracks hold no more frames than asked for, all are taken. Otherwise each track is cut into as
many equal strata as frames are wanted of it, and each stratum gives one frame at random: single
frames, because neighbours are much alike. For k = 500, 100,000 frames in spans of 5 make an inertia
1.5 % higher on other frames of the same music, in spans of 25 4.3 %. What lies far from any frame
wanted is not decoded.

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
from music_ssl_fairseq.features.track import Track
from music_ssl_fairseq.frames import FrameGrid
from music_ssl_fairseq.label.pieces import FeatureJob, Request

_NEAR = (
    12  # pieces' parts: frames wanted farther apart than one of these are sought, not read on to
)


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

    Attributes:
        quotas: `[tracks]` frames to take from each.
    """

    def __init__(self, manifest: Manifest, grid: FrameGrid, max_frames: int, seed: int):
        self.manifest = manifest
        self.num_frames = np.array([grid.num_frames(n) for n in manifest.num_samples.tolist()])
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
        return Part(track, places(int(self.num_frames[index]), quota, self.seed, index))


@dataclass(frozen=True)
class Reader(FeatureJob):
    """The job of a worker: parts to their features."""

    def __call__(self, parts: list[Part]) -> list[np.ndarray | AudioError]:
        """`[frames, dimension]` float32 of each part, or why it cannot be read."""
        size = self._pieces.front.piece_frames
        runs = [list(_runs(part.frames, size)) for part in parts]
        read = self._pieces(
            Request(part.track, int(run[0]), int(run[-1]) + 1)
            for part, of_part in zip(parts, runs, strict=True)
            for run in of_part
        )
        return [self._collect(of_part, read) for of_part in runs]

    def _collect(self, runs: list[np.ndarray], read: Iterator) -> np.ndarray | AudioError:
        rows, error = [np.empty((0, self._pieces.front.dimension), np.float32)], None
        for run in runs:
            found = next(read)
            if isinstance(found, AudioError):
                error = error or found
            else:
                rows.append(_as_array(found[run - run[0]]))
        return error or np.concatenate(rows)


def _as_array(rows) -> np.ndarray:
    return rows if isinstance(rows, np.ndarray) else rows.cpu().numpy()


def _runs(frames: np.ndarray, size: int) -> Iterator[np.ndarray]:
    """Frames that are read together: near each other, and not too much at once."""
    if not len(frames):
        return
    for near in np.split(frames, np.flatnonzero(np.diff(frames) > size // _NEAR) + 1):
        read = (near - near[0]) // size
        yield from np.split(near, np.flatnonzero(np.diff(read)) + 1)
