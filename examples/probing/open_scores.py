"""Render two probing tasks from open scores: key of Bach's chorales, instrument family of a note.

Everything comes from Python packages (extra `quickstart`): chorales and their declared keys from
music21, sounds from the General MIDI soundfont in pretty_midi.

- `key`: the first seconds of each chorale, transposed to several keys, played by ensembles of
  examples/open_music. A chorale, in all its keys, is in one split.
- `instrument`: single notes of 64 General MIDI programs of eight families. The splits have other
  notes of the same programs.

    python examples/probing/open_scores.py --out open_scores

writes `open_scores/{key,instrument}/audio`, the CSV that `python -m manifests_tools custom` takes,
and from it `open_scores/{key,instrument}/task`, a folder for `task.data`.
"""

import argparse
import csv
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import lru_cache
from pathlib import Path

import numpy as np

from music_ssl_fairseq.files import atomic_path

sys.path.insert(0, str(Path(__file__).parents[1] / "open_music"))
import render_scores
from render_scores import ENSEMBLES, Track

RATE = 16_000
PITCH_CLASSES = ("C", "Db", "D", "Eb", "E", "F", "Gb", "G", "Ab", "A", "Bb", "B")
FAMILIES = ("piano", "mallet", "organ", "guitar", "bass", "string", "brass", "reed")
"""General MIDI's, eight programs each: from 0, 8, 16, 24, 32, 40, 56 and 64 on."""
FIRST_PROGRAM = dict(zip(FAMILIES, (0, 8, 16, 24, 32, 40, 56, 64), strict=True))
NOTE_SECONDS, GAP_SECONDS = 2.0, 3.0
SPLITS = ("train", "valid", "test")
SHARES = (0.5, 0.65)  # where validation begins, and where the test does


@lru_cache(maxsize=1)
def declared_key(chorale: str) -> tuple[int, str] | None:
    """Tonic (0 is C) and mode as the score declares them; None if it does not."""
    from music21 import key

    for found in render_scores.parse(chorale).recurse().getElementsByClass(key.Key):
        if found.mode in ("major", "minor"):
            return found.tonic.pitchClass, found.mode
    return None


def songs(out: Path, count: int, keys: int, seed: int) -> list[tuple[str, Track]]:
    """Split and rendering of `count` chorales in `keys` keys each."""
    from music21 import corpus

    chorales = sorted(set(corpus.chorales.Iterator(returnType="filename")))
    rng = np.random.default_rng(seed)
    chosen = [chorales[i] for i in rng.permutation(len(chorales))[:count]]
    planned = []
    for number, chorale in enumerate(chosen):
        split = SPLITS[np.searchsorted(SHARES, number / len(chosen), side="right")]
        for transposition in rng.choice(np.arange(-6, 6), keys, replace=False).tolist():
            ensemble = str(rng.choice(list(ENSEMBLES)))
            planned.append((split, song(out, chorale, transposition, ensemble, (seed, number))))
    return planned


def song(
    out: Path, chorale: str, transposition: int, ensemble: str, seed: tuple[int, int]
) -> Track:
    """A chorale in one key."""
    rng = np.random.default_rng([*seed, transposition + 12])
    return Track(
        path=out / "audio" / f"{chorale.rpartition('/')[2]}_{transposition:+d}.flac",
        score=chorale,
        programs=rng.choice(ENSEMBLES[ensemble], 4).tolist(),
        quarters_per_minute=float(rng.uniform(70, 110)),
        transposition=transposition,
        sample_rate=RATE,
        channels=1,
        peak=float(rng.uniform(0.3, 0.95)),
        seed=seed,
    )


def render_song(track: Track, seconds: float) -> str | None:
    """Write a song; its key, or None if the score declares none."""
    declared = declared_key(track.score)
    if declared is None:
        return None
    if not track.path.exists():
        render_scores.render(track, seconds)
    tonic, mode = declared
    return f"{PITCH_CLASSES[(tonic + track.transposition) % 12]} {mode}"


def render_notes(program: int, out: Path, pitches: Sequence[int], seed: int) -> list[Path]:
    """Write each pitch of a program as a file of its own."""
    import pretty_midi
    import soundfile

    paths = [out / "audio" / f"{program:03d}_{pitch:03d}.flac" for pitch in pitches]
    if all(path.exists() for path in paths):
        return paths
    rng = np.random.default_rng([seed, program])
    midi = pretty_midi.PrettyMIDI()
    instrument = pretty_midi.Instrument(program)
    for i, pitch in enumerate(pitches):
        start, length = i * GAP_SECONDS, rng.uniform(0.8, 1.6)
        velocity = int(rng.integers(60, 115))
        instrument.notes.append(pretty_midi.Note(velocity, pitch, start, start + length))
    midi.instruments.append(instrument)
    waveform = render_scores.synthesise(midi, RATE, channels=1)
    for i, path in enumerate(paths):
        first = round(i * GAP_SECONDS * RATE)
        note = waveform[first : first + round(NOTE_SECONDS * RATE)]
        with atomic_path(path) as temporary:
            soundfile.write(temporary, note * (0.5 / max(1e-6, np.abs(note).max())), RATE)
    return paths


def key_rows(out: Path, args: argparse.Namespace, pool: ProcessPoolExecutor) -> Iterator[list[str]]:
    """path, label and split of each song."""
    from tqdm import tqdm

    plan = songs(out, args.chorales, args.keys, args.seed)
    labels = pool.map(
        render_song, [track for _, track in plan], [args.seconds] * len(plan), chunksize=args.keys
    )
    progress = tqdm(zip(plan, labels, strict=True), "key", len(plan), unit="song")
    for (split, track), label in progress:
        if label is not None:
            yield [f"audio/{track.path.name}", label, split]


def instrument_rows(
    out: Path, args: argparse.Namespace, pool: ProcessPoolExecutor
) -> Iterator[list[str]]:
    """path, label and split of each note."""
    from tqdm import tqdm

    programs = [first + i for first in FIRST_PROGRAM.values() for i in range(8)]
    pitches = np.linspace(36, 84, args.notes).round().astype(int).tolist()
    jobs = ([out] * len(programs), [pitches] * len(programs), [args.seed] * len(programs))
    rendered = pool.map(render_notes, programs, *jobs)
    for number, paths in enumerate(tqdm(rendered, "instrument", len(programs), unit="program")):
        order = np.random.default_rng([args.seed, number]).permutation(len(paths))
        for path, place in zip(paths, order / len(paths), strict=True):
            split = SPLITS[np.searchsorted(SHARES, place, side="right")]
            yield [f"audio/{path.name}", FAMILIES[number // 8], split]


def make_task(out: Path, name: str, kind: str, rows: list[list[str]], workers: int) -> None:
    """Write the CSV, and the task's folder from it."""
    from manifests_tools.__main__ import main as manifests_tools

    table = out / "labels.csv"
    with atomic_path(table) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([["path", "label", "split"], *rows])
    status = manifests_tools(
        [
            *("custom", "--csv", str(table), "--kind", kind, "--name", name),
            *("--out", str(out / "task"), "--workers", str(workers), "--force"),
        ]
    )
    if status:
        sys.exit(status)


def main() -> None:
    counts = {
        "chorales": (260, "how many"),
        "keys": (4, "keys of each chorale"),
        "notes": (25, "notes of each of 64 programs"),
    }
    args = render_scores.parse_options(__doc__, seconds=12, counts=counts)
    out = args.out.resolve()
    with ProcessPoolExecutor(args.workers) as pool:
        for name, rows, kind in (
            ("key", key_rows, "key"),
            ("instrument", instrument_rows, "multi-class"),
        ):
            (out / name / "audio").mkdir(parents=True, exist_ok=True)
            listed = list(rows(out / name, args, pool))
            make_task(out / name, f"open-{name}", kind, listed, args.workers)


if __name__ == "__main__":
    main()
