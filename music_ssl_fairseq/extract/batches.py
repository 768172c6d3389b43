"""Which parts of tracks are read together, and which windows go through the model together."""

from collections.abc import Iterable, Iterator
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from music_ssl_fairseq.data.manifest import Manifest
from music_ssl_fairseq.frames import SAMPLE_RATE, FrameGrid
from music_ssl_fairseq.upstream.statistics import Statistics, joined
from music_ssl_fairseq.upstream.windows import Section, Window, Windowing, sections

_LOAD = 60.0  # seconds of audio that a process reads before it hands them over
_WAITING = 4  # batches' worth of windows of rare lengths that may wait for others


class Part(NamedTuple):
    """A section of a track, to be read: samples `[start, start + num_samples)`."""

    track: int
    section: int
    start: int
    num_samples: int


class Cut:
    """A manifest's tracks in sections and windows."""

    def __init__(self, manifest: Manifest, grid: FrameGrid, windowing: Windowing):
        self.manifest = manifest
        self.grid = grid
        self.windowing = windowing
        self._sections = lru_cache(maxsize=64)(sections)

    def sections(self, track: int) -> list[Section]:
        """Of one track, first to last."""
        return self._sections(int(self.manifest.num_samples[track]), self.grid, self.windowing)

    def num_frames(self, track: int) -> int:
        """Of one track."""
        return self.grid.num_frames(int(self.manifest.num_samples[track]))

    def loads(self, tracks: Iterable[int]) -> Iterator[list[Part]]:
        """What a process reads at a time: a long section, or some short ones."""
        load: list[Part] = []
        for track in tracks:
            for number, section in enumerate(self.sections(track)):
                load.append(Part(track, number, section.start, section.num_samples))
                if sum(part.num_samples for part in load) >= _LOAD * SAMPLE_RATE:
                    yield load
                    load = []
        if load:
            yield load


class Row(NamedTuple):
    """A window on its way through the model.

    Attributes:
        waveform: `[T]`.
        statistics: of the section that it is part of; None for one that is heard whole.
    """

    track: int
    window: Window
    waveform: Tensor
    statistics: Statistics | None


def batches(rows: Iterable[Row], seconds: float) -> Iterator[list[Row]]:
    """Rows of equal length together, about `seconds` of audio, or one row.

    Nothing is padded, because a group norm would hear the padding. The windows of a track stay in
    order. Rows of a rare length wait for others, until too many wait in all.
    """
    waiting: dict[tuple[int, bool], list[Row]] = {}
    held = 0
    for row in rows:
        length = len(row.waveform)
        key = (length, row.statistics is None)
        waiting.setdefault(key, []).append(row)
        held += length
        if (len(waiting[key]) + 1) * length <= seconds * SAMPLE_RATE:
            if held <= _WAITING * seconds * SAMPLE_RATE:
                continue
            key = next(iter(waiting))  # the one that has waited longest
        ready = waiting.pop(key)
        held -= len(ready) * key[0]
        yield ready
    yield from waiting.values()


def stacked(rows: list[Row]) -> tuple[Tensor, Statistics | None, Tensor]:
    """Waveforms `[B, T]`, their sections' statistics, and the frames' weights `[B, frames]`."""
    weights = torch.stack([torch.from_numpy(row.window.weights) for row in rows])
    given = [row.statistics for row in rows if row.statistics is not None]
    return torch.stack([row.waveform for row in rows]), joined(given) if given else None, weights
