"""Sound of planned songs and notes: from MIDI, with a soundfont, to 16 kHz mono clips."""

import io
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from notes import Note
from songs import PREROLL, Song

from music_ssl_fairseq.runtime.files import atomic_path

if TYPE_CHECKING:
    from pretty_midi import Instrument, PrettyMIDI

RATE = 16_000
BITS_PER_SECOND = 24_000
_OPUS_RANGE = 6_000, 256_000
"""What libsndfile's compression levels 1 and 0 mean for Opus, in bits per second and channel."""
NOTE_SECONDS, GAP_SECONDS = 1.5, 2.5
ACCENTS = 8, 3, -3
"""Velocity added on downbeats, on other beats, and between."""


@lru_cache(maxsize=3)
def _font(path: Path) -> bytes:
    return path.read_bytes()


def synthesise(midi: "PrettyMIDI", font: Path) -> np.ndarray:
    """Synthesise `[T]` float64 at 16 kHz."""
    import midirenderer
    import scipy.signal
    import soundfile

    file = io.BytesIO()
    midi.write(file)
    rendered = midirenderer.render_wave_from(_font(font), file.getvalue())
    waveform, rate = soundfile.read(io.BytesIO(rendered), always_2d=True)
    common = int(np.gcd(rate, RATE))
    return scipy.signal.resample_poly(waveform.mean(axis=1), RATE // common, rate // common)


def song_waveform(song: Song, font: Path) -> np.ndarray:
    """Render a song: `[song.seconds * RATE]` float64, |x| <= 1."""
    import pretty_midi

    rng = np.random.default_rng([*song.seed, 1])
    preroll = min(PREROLL, (song.start - song.piece.parts[0][0][0]) * song.quarter)
    preroll = max(0.0, preroll)
    midi = pretty_midi.PrettyMIDI(resolution=960)
    for voice, (program, shift) in enumerate(song.voices):
        instrument = pretty_midi.Instrument(program)
        instrument.control_changes.append(
            pretty_midi.ControlChange(10, int(rng.integers(24, 104)), 0.0)  # pan
        )
        _play(instrument, song, voice, shift, preroll, rng)
        midi.instruments.append(instrument)
    waveform = synthesise(midi, font)[round(preroll * RATE) :]
    waveform = np.pad(waveform, (0, max(0, round(song.seconds * RATE) - len(waveform))))
    return scaled(waveform[: round(song.seconds * RATE)], float(rng.uniform(0.3, 0.95)))


def _play(
    instrument: "Instrument",
    song: Song,
    voice: int,
    shift: int,
    preroll: float,
    rng: np.random.Generator,
) -> None:
    import pretty_midi

    loudness = rng.uniform(70, 105)
    first = song.piece.bars[0]
    bar = song.piece.bars[1] - first
    for onset, length, pitch in song.piece.parts[voice % len(song.piece.parts)]:
        jitter, strength = abs(rng.normal(0, 0.006)), rng.normal(loudness, 5)
        start = (onset - song.start) * song.quarter + preroll + jitter
        if start < 0:
            continue
        if start >= preroll + song.seconds:
            break
        place = (onset - first) % bar
        on_beat = abs((place + 1e-3) % song.beat) < 2e-3
        strength += ACCENTS[0 if place < 1e-3 else 1 if on_beat else 2]
        stop = start + max(0.05, length * song.quarter * 0.97)
        height = pitch + song.transposition + shift
        velocity = int(np.clip(strength, 30, 127))
        if 12 <= height <= 108:
            instrument.notes.append(pretty_midi.Note(velocity, height, start, stop))


def note_waveforms(notes: Sequence[Note], font: Path) -> list[np.ndarray]:
    """Render the notes of one program, each `[NOTE_SECONDS * RATE]`."""
    import pretty_midi

    midi = pretty_midi.PrettyMIDI(resolution=960)
    instrument = pretty_midi.Instrument(notes[0].program)
    for number, note in enumerate(notes):
        start = number * GAP_SECONDS
        instrument.notes.append(
            pretty_midi.Note(note.velocity, note.pitch, start, start + note.length)
        )
    # An event after the last note, because rendering ends with the last event.
    end = pretty_midi.ControlChange(10, 64, len(notes) * GAP_SECONDS)
    instrument.control_changes.append(end)
    midi.instruments.append(instrument)
    waveform = synthesise(midi, font)
    waveform = np.pad(waveform, (0, round(len(notes) * GAP_SECONDS * RATE)))
    starts = [round(number * GAP_SECONDS * RATE) for number in range(len(notes))]
    return [
        scaled(waveform[start : start + round(NOTE_SECONDS * RATE)], note.peak)
        for start, note in zip(starts, notes, strict=True)
    ]


def scaled(waveform: np.ndarray, peak: float) -> np.ndarray:
    """Scale to this largest absolute value."""
    return waveform * (peak / max(1e-6, float(np.abs(waveform).max())))


def song(path: Path, planned: Song, font: Path) -> None:
    """Write a song."""
    write(path, song_waveform(planned, font))


def notes(folder: Path, planned: Sequence[Note], font: Path) -> None:
    """Write the notes of a program."""
    for note, waveform in zip(planned, note_waveforms(planned, font), strict=True):
        write(folder / f"{note.name}.flac", waveform)


def write(path: Path, waveform: np.ndarray) -> None:
    """Write `[T]` as FLAC, after Opus has coded it; an interrupt leaves nothing behind.

    All clips then carry the traces of one codec, and read faster than Opus for each encoder.
    """
    import soundfile

    low, high = _OPUS_RANGE
    level = (high - BITS_PER_SECOND) / (high - low)
    coded = io.BytesIO()
    soundfile.write(coded, waveform, RATE, format="OGG", subtype="OPUS", compression_level=level)
    coded.seek(0)
    decoded, _ = soundfile.read(coded, dtype="int16")
    with atomic_path(path) as temporary:
        soundfile.write(temporary, decoded, RATE, format="FLAC", subtype="PCM_16")
