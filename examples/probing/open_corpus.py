"""Render music to pre-train on, from scores that are in no probing task of open_scores.py.

Those tasks are made of Bach's chorales and of single notes. This corpus has none of either: tunes
(Ryan's Mammoth Collection), Palestrina's masses, Monteverdi's madrigals and songs of the trecento,
which music21 carries, in any key and register, played by any instruments of the General MIDI
soundfont in pretty_midi. Every track follows from (seed, number of the track).

    python examples/probing/open_corpus.py --out music --tracks 400

writes `music/00` to `music/19`, with all tracks of a score in one folder.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1] / "open_music"))
import render_scores

RATE = 16_000
FOLDERS = 20
COLLECTIONS = (
    ("ryansMammoth", ".abc", 0.4),
    ("palestrina", ".krn", 0.3),
    ("monteverdi", ".mxl", 0.2),
    ("trecento", ".xml", 0.1),
)
"""Folder in music21's corpus, ending of the files, share of the tracks."""
PROGRAMS = np.arange(112)
"""All that have a pitch, without effects (General MIDI, counted from 0)."""
OCTAVES = (-24, -12, -12, 0, 0, 12)
"""Semitones that a tune is moved by, to be heard in all registers; other scores stay in theirs."""


def scores_of(collection: str, ending: str) -> list[str]:
    """music21's names, "palestrina/Kyrie_16.krn"."""
    from music21 import corpus

    paths = [Path(path) for path in corpus.getComposer(collection)]
    return sorted(f"{collection}/{path.name}" for path in paths if path.suffix == ending)


def plan(out: Path, num_tracks: int, seed: int) -> list[render_scores.Track]:
    """The corpus of `num_tracks` tracks; a longer one begins with the same tracks."""
    collections = [scores_of(name, ending) for name, ending, _ in COLLECTIONS]
    return [plan_track(out, collections, index, seed) for index in range(num_tracks)]


def plan_track(
    out: Path, collections: Sequence[Sequence[str]], index: int, seed: int
) -> render_scores.Track:
    """Draw everything about track `index`."""
    rng = np.random.default_rng([seed, index])
    which = rng.choice(len(COLLECTIONS), p=[share for *_, share in COLLECTIONS])
    number = int(rng.integers(len(collections[which])))
    tune = which == 0
    # One instrument for all voices, or one a voice.
    programs = rng.choice(PROGRAMS, 1 if rng.random() < 0.5 else 6).tolist()
    return render_scores.Track(
        path=out / f"{number % FOLDERS:02d}" / f"{index:05d}.flac",
        score=collections[which][number],
        programs=programs,
        quarters_per_minute=float(rng.uniform(70, 180)),
        transposition=int(rng.integers(-6, 6)) + (int(rng.choice(OCTAVES)) if tune else 0),
        sample_rate=RATE,
        channels=1,
        peak=float(rng.uniform(0.3, 0.95)),
        seed=(seed, index),
        start=0.0 if tune else float(rng.uniform(0, 0.7)),
    )


def main() -> None:
    args = render_scores.parse_options(__doc__, seconds=20, counts={"tracks": (400, "how many")})
    tracks = plan(args.out, args.tracks, args.seed)
    render_scores.render_all(tracks, args.seconds, args.workers)
    print(f"{len(tracks)} tracks under {args.out}")


if __name__ == "__main__":
    main()
