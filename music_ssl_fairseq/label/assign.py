"""Every track's units, written as a line each of a `.km` file."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from music_ssl_fairseq.data.manifest import Manifest
from music_ssl_fairseq.errors import InputError
from music_ssl_fairseq.features import Features, FrontEnd, front_end
from music_ssl_fairseq.features.track import Track, check_length, track_features
from music_ssl_fairseq.label.kmeans import Nearest
from music_ssl_fairseq.label.parallel import ordered
from music_ssl_fairseq.label.usage import Usage

_WINDOW = 6000  # frames whose audio and features are held at once: a minute of MFCC


@dataclass(frozen=True)
class Labeller:
    """The job of a worker: a track to its units.

    Windows start at the same frames whatever the workers, so that a label never depends on how the
    work was shared out.
    """

    features: Features
    centroids: np.ndarray

    @cached_property
    def _front_end(self) -> FrontEnd:
        return front_end(self.features)

    @cached_property
    def _nearest(self) -> Nearest:
        return Nearest(self.centroids)

    def __call__(self, track: Track) -> np.ndarray:
        """`[frames]` int32, one for each frame of the grid: none if the track is too short.

        Raises:
            AudioError: if the file cannot be read, or has not the manifest's length.
        """
        check_length(track)
        num_frames = self._front_end.grid.num_frames(track.num_samples)
        units = np.empty(num_frames, np.int32)
        for first in range(0, num_frames, _WINDOW):
            last = min(num_frames, first + _WINDOW)
            frames = track_features(self._front_end, track, first, last)
            units[first:last] = self._nearest(frames)
        return units


def label_split(
    manifest: Manifest, labeller: Labeller, partial: Path, target: Path, workers: int
) -> Iterator[Usage]:
    """Label all tracks of a manifest, in its order.

    Lines go to `partial`, which becomes `target` when all are there. A `partial` that is there
    already is taken up where it ends.

    Args:
        partial: in the same folder as `target`, and of no other manifest or centroids.

    Yields:
        The usage so far, always the same object: first of what was found in `partial`, then after
        each track.

    Raises:
        InputError: naming a track that cannot be labelled. The lines before it are kept.
    """
    usage = Usage(len(labeller.centroids))
    partial.parent.mkdir(parents=True, exist_ok=True)
    with partial.open("a+b") as handle:
        for units in _take_up(handle, manifest, labeller):
            usage.add(units)
        yield usage
        tracks = (
            Track(manifest.path(i), int(manifest.num_samples[i]))
            for i in range(usage.tracks, len(manifest))
        )
        for units in ordered(labeller, tracks, workers):
            handle.write(" ".join(map(str, units.tolist())).encode() + b"\n")
            handle.flush()
            usage.add(units)
            yield usage
    os.replace(partial, target)


def _take_up(handle, manifest: Manifest, labeller: Labeller) -> Iterator[np.ndarray]:
    """Units of the whole lines in a partial file; cuts off half a line at its end."""
    grid = front_end(labeller.features).grid
    handle.seek(0)
    kept = 0
    for i, line in enumerate(handle):
        if not line.endswith(b"\n"):
            break
        units = np.array(line.split(), np.int32)
        if i >= len(manifest) or len(units) != grid.num_frames(int(manifest.num_samples[i])):
            raise InputError(f"{handle.name}, line {i + 1}: not what was written; run with --force")
        kept += len(line)
        yield units
    handle.truncate(kept)
    handle.seek(0, os.SEEK_END)
