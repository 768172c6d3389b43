"""Which parts of which tracks go through the model together."""

from collections import defaultdict
from collections.abc import Iterable, Iterator
from functools import lru_cache
from typing import NamedTuple

from music_ssl_fairseq.data.manifest import Manifest
from music_ssl_fairseq.frames import SAMPLE_RATE, FrameGrid
from music_ssl_fairseq.upstream.windows import Window, Windowing, plan


class Piece(NamedTuple):
    """One window of a track: samples `[start, start + num_samples)` of it."""

    track: int
    number: int
    start: int
    num_samples: int


class Cut:
    """The windows of a manifest's tracks."""

    def __init__(self, manifest: Manifest, grid: FrameGrid, windowing: Windowing):
        self.manifest = manifest
        self.grid = grid
        self.windowing = windowing
        # Tracks take turns in a batch, and each of their windows is asked for again.
        self._plan = lru_cache(maxsize=256)(plan)

    def windows(self, track: int) -> list[Window]:
        """Of one track, first to last."""
        return self._plan(int(self.manifest.num_samples[track]), self.grid, self.windowing)

    def num_frames(self, track: int) -> int:
        """Of one track."""
        return self.grid.num_frames(int(self.manifest.num_samples[track]))

    def batches(self, tracks: Iterable[int], seconds: float) -> Iterator[list[Piece]]:
        """Batches of windows of equal length, about `seconds` of audio each, or one window.

        Nothing is padded, because a group norm would hear the padding. So tracks that are one
        window share a batch with others of exactly their length. The windows of a track come in
        order. Lengths of which there are few wait until a batch of them is full, or the end.
        """
        waiting: dict[int, list[Piece]] = defaultdict(list)
        for track in tracks:
            for number, window in enumerate(self.windows(track)):
                length = window.num_samples
                waiting[length].append(Piece(track, number, window.start, length))
                if (len(waiting[length]) + 1) * length > seconds * SAMPLE_RATE:
                    yield waiting.pop(length)
        yield from waiting.values()
