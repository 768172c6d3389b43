"""Excerpts of the music with their units, from which the report is made."""

from collections.abc import Sequence
from functools import cache
from typing import NamedTuple

import numpy as np

from music_ssl_fairseq import audio
from music_ssl_fairseq.data.label_store import LabelStore
from music_ssl_fairseq.data.manifest import Manifest
from music_ssl_fairseq.errors import AudioError
from music_ssl_fairseq.features import FrontEnd, front_end
from music_ssl_fairseq.frames import SAMPLE_RATE
from music_ssl_fairseq.jobs.pool import WorkerPool, ordered

_EXCERPT_SECONDS = 10
_EXCERPTS = 180  # half an hour, enough to tell 500 units and 12 pitch classes apart
_NO_PITCH = -1
_MIN_RMS = 1e-5  # -100 dB


class Request(NamedTuple):
    """An excerpt: the frames `[first, last)` of a file, 100 per second."""

    path: str
    first: int
    last: int


class Excerpt(NamedTuple):
    """Values of each frame, 100 per second.

    Attributes:
        pitch_class: `[frames]` int8, the strongest one, C = 0; -1 where it is quiet.
        loudness: `[frames]` float32, decibels below a full-scale square wave.
        log_mel: `[frames, 80]` float16.
    """

    pitch_class: np.ndarray
    loudness: np.ndarray
    log_mel: np.ndarray


@cache
def _fronts() -> tuple[FrontEnd, FrontEnd]:
    # `front_end` remembers one front end, and these are two.
    return front_end("chroma"), front_end("logmel")


def read_excerpt(request: Request) -> Excerpt | AudioError:
    """Read an excerpt and compute its values; a job of workers."""
    chroma, log_mel = _fronts()
    grid = log_mel.grid
    num_samples = grid.num_samples(request.last - request.first)
    try:
        waveform = audio.read(request.path, request.first * grid.hop, num_samples)
    except AudioError as error:
        return error
    waveform = np.pad(waveform, (0, num_samples - len(waveform)))
    classes = chroma.features(waveform)
    # A frame whose strongest class is not scaled to 1 is too quiet to have a pitch.
    pitched = classes.max(axis=1) >= 0.999
    squares = np.square(waveform, dtype=np.float64)
    windows = np.lib.stride_tricks.sliding_window_view(squares, grid.window)[:: grid.hop]
    rms = np.sqrt(windows.mean(axis=1))
    return Excerpt(
        np.where(pitched, classes.argmax(axis=1), _NO_PITCH).astype(np.int8),
        (20 * np.log10(np.maximum(rms, _MIN_RMS))).astype(np.float32),
        log_mel.features(waveform).astype(np.float16),
    )


class ReportSamples(NamedTuple):
    """All excerpts, one after the other, with one element per label.

    Attributes:
        units: `[n]` int64.
        pitch_class: `[n]`, see `Excerpt`, as are the other two.
        loudness: `[n]`.
        log_mel: `[n, 80]`.
        excerpt: `[n]` number of the excerpt.
    """

    units: np.ndarray
    pitch_class: np.ndarray
    loudness: np.ndarray
    log_mel: np.ndarray
    excerpt: np.ndarray


def draw_samples(
    manifest: Manifest, labels: LabelStore, hop: int, seed: int, workers: int
) -> ReportSamples:
    """Draw excerpts of a split: at most half an hour, from as many tracks as possible.

    Tracks that cannot be read are left out. `hop` is in samples, from one label to the next.
    """
    step = front_end("logmel").grid.hop
    requests = _choose(manifest, labels.counts * hop // step, seed)
    found = ordered(read_excerpt, (request for _, request in requests), WorkerPool(workers))
    columns_of: list[tuple[np.ndarray, ...]] = []
    for number, ((track, request), excerpt) in enumerate(zip(requests, found, strict=True)):
        if isinstance(excerpt, AudioError):
            continue
        # Of the frames of 10 ms, the one that begins where a label does.
        first = -(-request.first * step // hop)
        units = labels.units(track, first, request.last * step // hop)
        frames = (first + np.arange(len(units))) * hop // step - request.first
        heard = tuple(values[frames] for values in excerpt)
        columns_of.append((units, *heard, np.full(len(units), number)))
    columns = [np.concatenate(column) for column in zip(*columns_of, strict=True)]
    return ReportSamples(*columns)


def _choose(manifest: Manifest, num_frames: np.ndarray, seed: int) -> Sequence[tuple[int, Request]]:
    """Return excerpts as (track, request), long tracks more often, in the manifest's order."""
    rng = np.random.default_rng((seed, 2))
    size = _EXCERPT_SECONDS * SAMPLE_RATE // front_end("logmel").grid.hop
    longest = np.maximum(0, num_frames)
    usable = np.flatnonzero(longest > 0)
    share = longest[usable] / longest[usable].sum()
    tracks = np.sort(rng.choice(usable, min(_EXCERPTS, 2 * len(usable)), p=share))
    chosen = []
    for track in tracks.tolist():
        first = int(rng.integers(max(1, longest[track] - size)))
        last = min(int(longest[track]), first + size)
        chosen.append((track, Request(manifest.path(track), first, last)))
    return chosen
