"""Excerpts of the music with their units, from which the report is made."""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from music_ssl_fairseq import audio
from music_ssl_fairseq.data.label_store import LabelStore
from music_ssl_fairseq.data.manifest import Manifest
from music_ssl_fairseq.errors import AudioError
from music_ssl_fairseq.features.cqt import Chroma
from music_ssl_fairseq.features.kaldi import GRID, LogMel
from music_ssl_fairseq.frames import SAMPLE_RATE, first_from, samples_in
from music_ssl_fairseq.jobs.pool import WorkerPool, ordered

CLIPS = 5
"""Places per unit that can be listened to."""

_EXCERPT_SECONDS = 10
_EXCERPTS = 180  # half an hour, enough to tell 500 units and 12 pitch classes apart
_REACH_SECONDS = 0.7  # before and after a place of a rare unit
_RARE_EXCERPTS = 1500  # as long as the excerpts together
_NO_PITCH = -1
_MIN_RMS = 1e-5  # -100 dB


class ExcerptPlace(NamedTuple):
    """An excerpt of a track: its frames `[first, last)`, 100 per second."""

    track: int
    path: str
    first: int
    last: int


class UnitExcerpt(NamedTuple):
    """Values of each frame, 100 per second."""

    pitch_class: np.ndarray  # `[frames]` int8, the strongest one, C = 0; -1 where it is quiet
    loudness: np.ndarray  # `[frames]` float32, decibels below a full-scale square wave
    log_mel: np.ndarray  # `[frames, 80]` float16
    sound: bytes  # an MP3 file


def read_excerpt(place: ExcerptPlace) -> UnitExcerpt | AudioError:
    """Read an excerpt and compute its values, in a worker."""
    num_samples = GRID.num_samples(place.last - place.first)
    try:
        waveform = audio.read(place.path, place.first * GRID.hop, num_samples)
    except AudioError as error:
        return error
    waveform = np.pad(waveform, (0, num_samples - len(waveform)))
    classes = Chroma().features(waveform)
    # A frame whose strongest class is not scaled to 1 is too quiet to have a pitch.
    pitched = classes.max(axis=1) >= 0.999
    squares = np.square(waveform, dtype=np.float64)
    windows = np.lib.stride_tricks.sliding_window_view(squares, GRID.window)[:: GRID.hop]
    rms = np.sqrt(windows.mean(axis=1))
    return UnitExcerpt(
        np.where(pitched, classes.argmax(axis=1), _NO_PITCH).astype(np.int8),
        (20 * np.log10(np.maximum(rms, _MIN_RMS))).astype(np.float32),
        LogMel().features(waveform).astype(np.float16),
        audio.mp3(waveform, SAMPLE_RATE),
    )


class ReportSamples(NamedTuple):
    """All excerpts, one after the other, with one element per label."""

    units: np.ndarray  # `[n]` int64
    seconds: np.ndarray  # `[n]` float64, from the excerpt's start to the label's
    pitch_class: np.ndarray  # `[n]`, see `UnitExcerpt`, as are the other two
    loudness: np.ndarray  # `[n]`
    log_mel: np.ndarray  # `[n, 80]`
    excerpt: np.ndarray  # `[n]` number of the excerpt, an index of the other two
    drawn: np.ndarray  # `[n]` bool, False in excerpts that were chosen for a rare unit
    sounds: Sequence[bytes]  # MP3 files
    tracks: Sequence[int]  # numbers of the tracks


def draw_samples(
    manifest: Manifest, labels: LabelStore, counts: np.ndarray, hop: int, seed: int, workers: int
) -> ReportSamples:
    """Draw excerpts of a split: at most half an hour, from as many tracks as possible.

    For units that occur less than `CLIPS` times in them, short ones are added. Tracks that cannot
    be read are left out.

    Raises AudioError if none of them can be read.

    Args:
        counts: `[k]` labels of each unit in the split.
        hop: in samples, from one label to the next.
    """
    drawn = _choose(manifest, labels.counts * hop // GRID.hop, seed)
    missing = np.where(counts > 0, CLIPS, 0)
    for place in drawn:
        units = _units(place, labels, hop)
        missing -= np.bincount(units[runs(units)[0]], minlength=len(missing))
    places = drawn + _find(manifest, labels, missing.clip(0), hop, seed)
    read = list(zip(places, ordered(read_excerpt, places, WorkerPool(workers)), strict=True))
    found = [(place, excerpt) for place, excerpt in read if isinstance(excerpt, UnitExcerpt)]
    if not found:
        raise next(error for _, error in read if isinstance(error, AudioError))
    at_labels = [_at_labels(place, excerpt, labels, hop) for place, excerpt in found]
    columns = [np.concatenate(column) for column in zip(*at_labels, strict=True)]
    units, seconds, pitch_class, loudness, log_mel = columns
    excerpts = np.repeat(np.arange(len(found)), [len(units) for units, *_ in at_labels])
    first_rare = sum(isinstance(excerpt, UnitExcerpt) for _, excerpt in read[: len(drawn)])
    return ReportSamples(
        units,
        seconds,
        pitch_class,
        loudness,
        log_mel,
        excerpt=excerpts,
        drawn=excerpts < first_rare,
        sounds=[excerpt.sound for _, excerpt in found],
        tracks=[place.track for place, _ in found],
    )


def _at_labels(
    place: ExcerptPlace, excerpt: UnitExcerpt, labels: LabelStore, hop: int
) -> tuple[np.ndarray, ...]:
    """Return the units of an excerpt, their seconds, and the values of the frames there."""
    units = _units(place, labels, hop)
    # Frames last 10 ms: take the one that begins with the label.
    first = first_from(place.first * GRID.hop, hop)
    frames = (first + np.arange(len(units))) * hop // GRID.hop - place.first
    values = (excerpt.pitch_class[frames], excerpt.loudness[frames], excerpt.log_mel[frames])
    return units, frames * GRID.hop / SAMPLE_RATE, *values


def _units(place: ExcerptPlace, labels: LabelStore, hop: int) -> np.ndarray:
    """Return the labels that begin within an excerpt."""
    first, last = place.first * GRID.hop, place.last * GRID.hop
    return labels.units(place.track, first_from(first, hop), last // hop)


def _find(
    manifest: Manifest, labels: LabelStore, missing: np.ndarray, hop: int, seed: int
) -> list[ExcerptPlace]:
    """Return short excerpts with units of which there are too few, some hundreds at most."""
    most = CLIPS
    while np.minimum(missing, most).sum() > _RARE_EXCERPTS:
        most -= 1
    reach = samples_in(_REACH_SECONDS)
    places = []
    for track, label in _places(labels, np.minimum(missing, most), seed):
        first = max(0, label * hop - reach) // GRID.hop
        last = min(int(labels.counts[track]) * hop, label * hop + reach) // GRID.hop
        places.append(ExcerptPlace(track, manifest.path(track), first, max(first + 1, last)))
    return places


def _choose(manifest: Manifest, num_frames: np.ndarray, seed: int) -> list[ExcerptPlace]:
    """Return excerpts, of long tracks more often, in the manifest's order."""
    rng = np.random.default_rng((seed, 2))
    size = _EXCERPT_SECONDS * SAMPLE_RATE // GRID.hop
    usable = np.flatnonzero(num_frames)
    share = num_frames[usable] / num_frames.sum()
    tracks = np.sort(rng.choice(usable, min(_EXCERPTS, 2 * len(usable)), p=share))
    chosen = []
    for track in tracks.tolist():
        first = int(rng.integers(max(1, num_frames[track] - size)))
        last = min(int(num_frames[track]), first + size)
        chosen.append(ExcerptPlace(track, manifest.path(track), first, last))
    return chosen


def _places(labels: LabelStore, wanted: np.ndarray, seed: int) -> Iterable[tuple[int, int]]:
    """Return places of units as (track, label), up to `wanted[unit]` of each.

    They are the middles of a unit's longest run in a track, one per track. A unit that is in too
    few tracks has other runs as well.
    """
    found: dict[int, list[tuple[int, int]]] = {int(unit): [] for unit in np.flatnonzero(wanted)}
    others: dict[int, list[tuple[int, int]]] = {unit: [] for unit in found}
    lacking = wanted > 0
    for track in np.random.default_rng((seed, 3)).permutation(len(labels)).tolist():
        if not lacking.any():
            break
        units = labels.units(track)
        begins, ends = runs(units)
        here = np.flatnonzero(lacking[units[begins]])
        middles: dict[int, list[tuple[int, int]]] = {}  # of each unit's runs, longest first
        for run in here[np.argsort(begins[here] - ends[here], kind="stable")].tolist():
            middle = int(begins[run] + ends[run]) // 2
            middles.setdefault(int(units[begins[run]]), []).append((track, middle))
        for unit, (longest, *shorter) in middles.items():
            found[unit].append(longest)
            others[unit] += shorter
            lacking[unit] = len(found[unit]) < wanted[unit]
    places = [(found[unit] + others[unit])[: wanted[unit]] for unit in found]
    return sorted(place for several in places for place in several)


def runs(units: np.ndarray, excerpts: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Return the first and last label of each stretch of equal units, within excerpts `[n]`."""
    changes = units[1:] != units[:-1]
    if excerpts is not None:
        changes |= excerpts[1:] != excerpts[:-1]
    inner = np.flatnonzero(changes)
    if not len(units):
        return inner, inner
    return np.r_[0, inner + 1], np.r_[inner, len(units) - 1]
