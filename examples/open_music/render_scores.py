"""Render a small corpus of real scores to audio, from Python packages alone.

The scores are Bach's chorales, which music21 carries; the instruments those of the General MIDI
soundfont in pretty_midi. Every track takes a chorale, a tempo, a transposition and an instrument
per voice from (seed, number of the track), so the same call always renders the same music. Files
come out as people's folders are: mostly FLAC, some Ogg, MP3 and WAV, at several rates, stereo and
mono. Each folder holds one kind of ensemble, which makes a split by folder a real test.

    python examples/open_music/render_scores.py --out music --tracks 60
"""

import argparse
import io
import os
import sys
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from music_ssl_fairseq.runtime.files import atomic_path

if TYPE_CHECKING:
    from music21.stream import Score
    from pretty_midi import PrettyMIDI

# General MIDI programs, counted from 0.
ENSEMBLES: dict[str, Sequence[int]] = {
    "00_organ": (16, 17, 18, 19, 20),
    "01_strings": (40, 41, 42, 44, 48, 49),
    "02_brass": (56, 57, 58, 59, 60, 61),
    "03_woodwind": (68, 69, 70, 71, 72, 73, 74),
    "04_choir": (52, 53, 54, 91),
    "05_keyboard": (0, 1, 3, 4, 5, 6, 7),
    "06_plucked": (24, 25, 26, 27, 45, 46, 105, 107),
    "07_mallet": (9, 11, 12, 13, 108),
    "08_synthesizer": (80, 81, 82, 84, 88, 89, 90, 95),
    "09_saxophone": (64, 65, 66, 67),
    "10_accordion": (21, 22, 23, 109),
    "11_mixed": (0, 19, 24, 32, 40, 42, 46, 53, 56, 60, 66, 68, 71, 73, 81),
}

# Container, Hz, channels; drawn with equal chances.
DELIVERIES = (
    ("flac", 44_100, 2),
    ("flac", 44_100, 2),
    ("flac", 48_000, 2),
    ("flac", 16_000, 1),
    ("ogg", 44_100, 2),
    ("mp3", 44_100, 2),
    ("wav", 22_050, 1),
)

FADE_SECONDS = 0.5
"""Seconds of fade at the end of a track, so that a cut is no click."""


@dataclass(frozen=True)
class Track:
    """One rendering, settled before any audio is made."""

    path: Path
    score: str  # music21's name, "bach/bwv269"
    programs: Sequence[int]  # one per voice, repeated if there are more voices
    quarters_per_minute: float
    transposition: int  # semitones
    sample_rate: int
    channels: int
    peak: float  # of the waveform, full scale 1
    seed: Sequence[int]


def plan(out: Path, num_tracks: int, seed: int) -> list[Track]:
    """Plan a corpus of `num_tracks` tracks; a longer one begins with the same tracks."""
    from music21 import corpus

    chorales = sorted(set(corpus.chorales.Iterator(returnType="filename")))
    order = np.random.default_rng(seed).permutation(len(chorales))
    return [
        plan_track(out, chorales[order[index % len(order)]], index, seed)
        for index in range(num_tracks)
    ]


def plan_track(out: Path, chorale: str, index: int, seed: int) -> Track:
    """Draw everything that varies about track `index`."""
    rng = np.random.default_rng([seed, index])
    ensemble = list(ENSEMBLES)[index % len(ENSEMBLES)]
    container, sample_rate, channels = DELIVERIES[rng.integers(len(DELIVERIES))]
    number = chorale.rpartition("/")[2]
    return Track(
        path=out / ensemble / f"{index:04d}_{number}.{container}",
        score=chorale,
        programs=rng.choice(ENSEMBLES[ensemble], 4).tolist(),
        quarters_per_minute=float(rng.uniform(60, 108)),
        transposition=int(rng.integers(-5, 7)),
        sample_rate=sample_rate,
        channels=channels,
        peak=float(rng.uniform(0.3, 0.95)),
        seed=(seed, index),
    )


@lru_cache(maxsize=1)
def parse(score: str) -> "Score":
    """Return music21's score of that name; keep the last one, which may come in several keys."""
    from music21 import corpus

    return corpus.parse(score)


def midi_of(track: Track, seconds: float) -> "PrettyMIDI":
    """Return `seconds` of the score as MIDI, with a player's unevenness in time and loudness."""
    import pretty_midi

    rng = np.random.default_rng([*track.seed, 1])
    quarter = 60 / track.quarters_per_minute
    midi = pretty_midi.PrettyMIDI()
    for voice, part in enumerate(parse(track.score).parts):
        instrument = pretty_midi.Instrument(track.programs[voice % len(track.programs)])
        instrument.control_changes.append(
            pretty_midi.ControlChange(10, int(rng.integers(24, 104)), 0.0)  # pan
        )
        loudness = rng.uniform(70, 105)
        for element in part.stripTies().flatten().notes:
            start = float(element.offset) * quarter + abs(rng.normal(0, 0.008))
            end = start + max(0.05, float(element.quarterLength) * quarter * 0.97)
            if start >= seconds:
                break
            velocity = int(np.clip(rng.normal(loudness, 7), 30, 127))
            instrument.notes += [
                pretty_midi.Note(velocity, pitch.midi + track.transposition, start, end)
                for pitch in element.pitches
            ]
        midi.instruments.append(instrument)
    return midi


@lru_cache(maxsize=1)
def soundfont() -> bytes:
    """Return the General MIDI soundfont that pretty_midi carries (6 MB)."""
    import pretty_midi

    return Path(pretty_midi.__file__).with_name("TimGM6mb.sf2").read_bytes()


def synthesise(midi: "PrettyMIDI", sample_rate: int, channels: int) -> np.ndarray:
    """Synthesise MIDI with the soundfont: `[T, channels]` float64."""
    import midirenderer
    import scipy.signal
    import soundfile

    file = io.BytesIO()
    midi.write(file)
    rendered = midirenderer.render_wave_from(soundfont(), file.getvalue())
    waveform, rate = soundfile.read(io.BytesIO(rendered), always_2d=True)
    if channels == 1:
        waveform = waveform.mean(axis=1, keepdims=True)
    if rate != sample_rate:
        common = np.gcd(rate, sample_rate)
        waveform = scipy.signal.resample_poly(waveform, sample_rate // common, rate // common)
    return waveform


def waveform_of(track: Track, seconds: float) -> np.ndarray:
    """Synthesise, cut to `seconds`, fade: `[T, channels]` float64, |x| <= peak."""
    waveform = synthesise(midi_of(track, seconds), track.sample_rate, track.channels)
    waveform = waveform[: int(seconds * track.sample_rate)]
    fade = min(len(waveform), int(FADE_SECONDS * track.sample_rate))
    waveform[len(waveform) - fade :] *= np.linspace(1, 0, fade)[:, None]
    return waveform * (track.peak / max(1e-6, np.abs(waveform).max()))


def render(track: Track, seconds: float) -> None:
    """Write one track; nothing is left behind if it is interrupted."""
    import soundfile

    waveform = waveform_of(track, seconds)
    with (
        atomic_path(track.path) as temporary,
        soundfile.SoundFile(temporary, "w", track.sample_rate, track.channels) as file,
    ):
        # libsndfile's Vorbis encoder overflows the stack when given minutes at once.
        for start in range(0, len(waveform), track.sample_rate):
            file.write(waveform[start : start + track.sample_rate])


def render_all(tracks: Sequence[Track], seconds: float, workers: int) -> None:
    """Render the tracks that do not exist yet."""
    from tqdm import tqdm

    missing = [track for track in tracks if not track.path.exists()]
    with ProcessPoolExecutor(workers) as pool:
        done = pool.map(render, missing, [seconds] * len(missing))
        for _ in tqdm(done, "render", len(missing), unit=" tracks", disable=not missing):
            pass


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--out", type=Path, required=True, help="folder to write to")
    add("--tracks", type=int, default=60, help="tracks to render (default: 60)")
    add("--seconds", type=float, default=40, help="most seconds of each score (default: 40)")
    add("--seed", type=int, default=0, help="seed of tempi, keys and instruments (default: 0)")
    add("--workers", type=int, default=os.cpu_count(), help="processes (default: one per core)")
    args = parser.parse_args()
    if min(args.tracks, args.seconds, args.workers) < 1:
        sys.exit("error: --tracks, --seconds and --workers must be at least 1")
    return args


def main() -> None:
    args = parse_options()
    tracks = plan(args.out, args.tracks, args.seed)
    render_all(tracks, args.seconds, args.workers)
    folders = len({track.path.parent for track in tracks})
    print(f"{len(tracks)} tracks in {folders} folders under {args.out}")


if __name__ == "__main__":
    main()
