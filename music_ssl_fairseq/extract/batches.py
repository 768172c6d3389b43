"""Cut tracks into parts, read these in processes ahead of the model, and batch windows for it."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from music_ssl_fairseq import audio
from music_ssl_fairseq.data.manifest import Manifest
from music_ssl_fairseq.errors import AudioError
from music_ssl_fairseq.features.chunk_features import Track, check_length
from music_ssl_fairseq.frames import SAMPLE_RATE, FrameGrid
from music_ssl_fairseq.jobs.pool import WorkerPool, ordered
from music_ssl_fairseq.jobs.read_ahead import ReadAhead
from music_ssl_fairseq.upstream.windows import (
    Section,
    Statistics,
    Window,
    Windowing,
    joined,
    sections,
)

_LOAD_SECONDS = 60.0  # of audio that a process reads before it returns them
_MAX_HELD_BATCHES = 4  # worth of windows of rare lengths that are held for others of their length


class Part(NamedTuple):
    """A section of a track, to be read."""

    track: int
    section: Section


@dataclass(frozen=True)
class Cut:
    """A manifest's tracks in sections and windows."""

    manifest: Manifest
    grid: FrameGrid
    windowing: Windowing

    def num_frames(self, track: int) -> int:
        """Return a track's number of frames."""
        return self.grid.num_frames(int(self.manifest.num_samples[track]))

    def loads(self, tracks: Iterable[int]) -> Iterator[list[Part]]:
        """Yield the parts that a process reads at a time: a long section, or some short ones."""
        load: list[Part] = []
        for track in tracks:
            num_samples = int(self.manifest.num_samples[track])
            for section in sections(num_samples, self.grid, self.windowing):
                load.append(Part(track, section))
                if sum(_lengths(load)) >= _LOAD_SECONDS * SAMPLE_RATE:
                    yield load
                    load = []
        if load:
            yield load


def _lengths(parts: list[Part]) -> list[int]:
    return [part.section.num_samples for part in parts]


class QueuedWindow(NamedTuple):
    """A window on its way through the model."""

    track: int
    window: Window
    waveform: Tensor  # `[T]`
    statistics: Statistics | None  # of its section; None for a track that is one window


Batch = list[QueuedWindow]


def batches(windows: Iterable[QueuedWindow], seconds: float) -> Iterator[Batch]:
    """Batch windows of equal length: about `seconds` of audio, or one window.

    Nothing is padded, because padding would change a group norm. The windows of a track stay in
    order. Windows of a rare length are held for others, until too many are held in all.
    """
    queues: dict[tuple[int, bool], list[QueuedWindow]] = {}
    held = 0
    for queued in windows:
        length = len(queued.waveform)
        key = (length, queued.statistics is None)
        queues.setdefault(key, []).append(queued)
        held += length
        if (len(queues[key]) + 1) * length <= seconds * SAMPLE_RATE:
            if held <= _MAX_HELD_BATCHES * seconds * SAMPLE_RATE:
                continue
            key = next(iter(queues))  # the oldest
        ready = queues.pop(key)
        held -= len(ready) * key[0]
        yield ready
    yield from queues.values()


def stacked(batch: Batch) -> tuple[Tensor, Statistics | None, Tensor]:
    """Return waveforms `[B, T]`, statistics of their sections, and weights `[B, frames]`."""
    waveforms = torch.stack([queued.waveform for queued in batch])
    weights = torch.stack([torch.from_numpy(queued.window.weights) for queued in batch])
    given = [queued.statistics for queued in batch if queued.statistics is not None]
    return waveforms, joined(given) if given else None, weights


_PINNED_AHEAD = 2  # loads in page-locked memory before their use


class Load(NamedTuple):
    """Parts of tracks that were read."""

    parts: list[Part]
    # `[T]` float32, 16 kHz, all of them in a row; zeros where one could not be read
    waveform: Tensor
    reasons: list[str]  # for each part, why it could not be read, or ""

    def pieces(self, waveform: Tensor) -> list[tuple[Part, str, Tensor]]:
        """Return the parts with their reasons and samples of `waveform`, wherever that is."""
        samples = waveform.split(_lengths(self.parts))
        return list(zip(self.parts, self.reasons, samples, strict=True))


def read_loads(
    manifest: Manifest, loads: Iterable[list[Part]], workers: int, device: torch.device
) -> Iterator[Load]:
    """Yield what `Cut.loads` lists, in order, read ahead by processes.

    With 0 `workers`, this process reads. For a GPU as `device`, loads are in page-locked memory,
    from which it copies while it computes.

    Raises InputError if a process was killed, as happens where there is little shared memory.
    """
    advice = "give fewer --workers, or 0 (containers have little shared memory, /dev/shm)"
    pool = WorkerPool(workers, fork=True, advice=advice)
    read = ordered(partial(_read_load, manifest), loads, pool)
    if device.type != "cuda":
        yield from read
        return
    with ReadAhead(partial(_pinned, device), read, threads=1, depth=_PINNED_AHEAD) as pinned:
        yield from pinned


def _pinned(device: torch.device, load: Load) -> Load:
    with torch.cuda.device(device):
        return load._replace(waveform=load.waveform.pin_memory())


def _read_load(manifest: Manifest, parts: list[Part]) -> Load:
    waveform = torch.zeros(sum(_lengths(parts)))
    reasons = []
    for part, samples in zip(parts, waveform.split(_lengths(parts)), strict=True):
        track = Track(manifest.path(part.track), int(manifest.num_samples[part.track]))
        try:
            if part.section.start == 0:
                check_length(track)
            found = audio.read(track.path, part.section.start, part.section.num_samples)
            # check_length allows some missing milliseconds at the end: they are silence.
            samples[: len(found)] = torch.from_numpy(found)
            reasons.append("")
        except AudioError as error:
            reasons.append(error.reason)
    return Load(parts, waveform, reasons)
