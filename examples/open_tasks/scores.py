"""Read the scores that the open tasks are made of, once: music21 takes half a second for each.

A piece is plain numbers: notes of each part, key, metre and whole bars, all in quarter notes.
Pieces are kept as JSON, one file per collection.

    python examples/open_tasks/scores.py --out open_tasks/scores
"""

import argparse
import hashlib
import json
import sys
import warnings
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from music_ssl_fairseq.cli import whole_number
from music_ssl_fairseq.runtime.files import atomic_path

if TYPE_CHECKING:
    from music21.stream import Measure, Score

COLLECTIONS: dict[str, tuple[str, str, int]] = {
    "bach": ("bach", ".mxl", 0),
    "oneills": ("oneills1850", ".abc", 12),
    "airds": ("airdsAirs", ".abc", 3),
    "palestrina": ("palestrina", ".krn", 50),
    "monteverdi": ("monteverdi", ".mxl", 0),
}
"""Name here: folder in music21's corpus, ending of its files, how many of them at most (0: all)."""
SHORTEST = 16.0
"""Quarter notes of whole bars in a row that a piece must have."""


@dataclass(frozen=True)
class Piece:
    """A score as numbers; times in quarter notes from its beginning.

    Attributes:
        name: such as `bach_bwv269`.
        parts: for each, the notes `[onset, length, MIDI pitch]` in order.
        key: tonic (0 is C) and `major` or `minor`, as the score declares them; None if it does not.
        metre: numerator and denominator of its only time signature.
        bars: onsets of the first to the last of the longest row of whole bars, and the end.
        melody: the same for pieces whose melodies begin alike, whatever the key.
    """

    name: str
    collection: str
    parts: list[list[tuple[float, float, int]]]
    key: tuple[int, str] | None
    metre: tuple[int, int]
    bars: list[float]
    melody: str


def read(folder: Path, collections: Sequence[str], workers: int) -> dict[str, list[Piece]]:
    """Return the pieces of each collection; parse those that `folder` does not have."""
    found = {}
    for collection in collections:
        path = folder / f"{collection}.json"
        if not path.exists():
            folder.mkdir(parents=True, exist_ok=True)
            pieces = _parse_all(collection, workers)
            with atomic_path(path) as temporary:
                lines = [json.dumps(asdict(piece)) for piece in pieces]
                temporary.write_text("\n".join(lines) + "\n", encoding="utf-8")
        lines = path.read_text(encoding="utf-8").splitlines()
        found[collection] = [_piece(json.loads(line)) for line in lines]
    return found


def _piece(values: dict[str, Any]) -> Piece:
    values["parts"] = [[(on, length, p) for on, length, p in part] for part in values["parts"]]
    values["key"] = tuple(values["key"]) if values["key"] else None
    values["metre"] = tuple(values["metre"])
    return Piece(**values)


def _parse_all(collection: str, workers: int) -> list[Piece]:
    from tqdm import tqdm

    files = _files(collection)
    with ProcessPoolExecutor(workers) as pool:
        parsed = pool.map(_parse, [collection] * len(files), files)
        progress = tqdm(parsed, f"scores of {collection}", len(files), unit=" files")
        return [piece for pieces in progress for piece in pieces]


def _files(collection: str) -> list[str]:
    from music21 import corpus

    folder, ending, at_most = COLLECTIONS[collection]
    if collection == "bach":
        return sorted(set(corpus.chorales.Iterator(returnType="filename")))
    paths = [Path(path) for path in corpus.getComposer(folder)]
    files = sorted(f"{folder}/{path.name}" for path in paths if path.suffix == ending)
    # In an order of no meaning: the first are not all by one scribe or in one mode.
    files.sort(key=lambda name: hashlib.sha1(name.encode()).hexdigest())
    return sorted(files[: at_most or None])


def _parse(collection: str, file: str) -> list[Piece]:
    """Parse the usable pieces of a file, which may hold many."""
    from music21 import corpus
    from music21.exceptions21 import Music21Exception

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            parsed = corpus.parse(file)
        except (Music21Exception, ValueError, IndexError, KeyError, ZeroDivisionError):
            return []
        stem = Path(file).stem
        scores = list(parsed.scores) if hasattr(parsed, "scores") else [parsed]
        names = [f"{collection}_{stem}"]
        if len(scores) > 1:
            names = [f"{names[0]}_{number:03d}" for number in range(len(scores))]
        pieces = (
            _convert(collection, name, score) for name, score in zip(names, scores, strict=True)
        )
        return [piece for piece in pieces if piece is not None]


def _convert(collection: str, name: str, score: "Score") -> Piece | None:
    """Convert a score; None if it has several time signatures, no row of whole bars, no notes."""
    from music21 import key, meter

    metres = {
        (found.numerator, found.denominator)
        for found in score.recurse().getElementsByClass(meter.TimeSignature)
    }
    if len(metres) != 1:
        return None
    metre = metres.pop()
    streams = list(score.parts) or [score]
    bars = _whole_bars(streams[0].getElementsByClass("Measure"), 4 * metre[0] / metre[1])
    if len(bars) < 3 or bars[-1] - bars[0] < SHORTEST:
        return None
    parts = [_notes(part) for part in streams]
    parts = [notes for notes in parts if notes]
    if not parts:
        return None
    declared = None
    for found in score.recurse().getElementsByClass(key.Key):
        if found.mode in ("major", "minor"):
            declared = (found.tonic.pitchClass, found.mode)
        break
    top = [pitch for _, _, pitch in parts[0][:9]]
    melody = "_".join(str(b - a) for a, b in pairwise(top))
    return Piece(name.replace(".", "-"), collection, parts, declared, metre, bars, melody)


def _whole_bars(measures: Sequence["Measure"], length: float) -> list[float]:
    """Return the edges of the longest row of bars that are neither upbeats nor cut by a repeat."""
    edges = [float(m.offset) for m in measures]
    edges += [edges[-1] + float(measures[-1].duration.quarterLength)] if edges else []
    best: list[float] = []
    row: list[float] = []
    for start, stop in pairwise(edges):
        if abs(stop - start - length) > 1e-6:
            row = []
            continue
        row = [*(row or [start]), stop]
        if len(row) > len(best):
            best = list(row)
    return best


def _notes(part: Any) -> list[tuple[float, float, int]]:
    notes = [
        (round(float(element.offset), 4), round(float(element.quarterLength), 4), pitch.midi)
        for element in part.stripTies().flatten().notes
        if not element.duration.isGrace
        for pitch in element.pitches
    ]
    return sorted(notes)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, required=True, help="folder to write to")
    parser.add_argument("--workers", type=whole_number(1), default=2, help="processes (default: 2)")
    parser.add_argument("names", nargs="*", default=list(COLLECTIONS), help="which collections")
    args = parser.parse_args()
    for name, pieces in read(args.out, args.names, args.workers).items():
        keys = sum(piece.key is not None for piece in pieces)
        print(f"{name}: {len(pieces)} pieces, {keys} with a key")


if __name__ == "__main__":
    sys.exit(main())
