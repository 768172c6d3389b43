"""Plan and label the excerpts of scores that most open tasks are made of: all but the audio."""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from scores import Piece

SECONDS = 5.0
"""Of each excerpt: one window of the probes."""
FAMILIES: dict[str, range] = {
    "piano": range(0, 8),
    "mallet": range(8, 16),
    "organ": range(16, 24),
    "guitar": range(24, 32),
    "bass": range(32, 40),
    "string": range(40, 47),
    "ensemble": range(48, 55),
    "brass": range(56, 64),
    "reed": range(64, 72),
    "pipe": range(72, 80),
}
"""General MIDI's, counted from 0; without timpani (47) and the orchestra's hit (55)."""
PITCH_CLASSES = ("C", "Db", "D", "Eb", "E", "F", "Gb", "G", "Ab", "A", "Bb", "B")
SPLITS = ("train", "valid", "test")
TEMPI = (50.0, 66.0, 87.0, 115.0, 152.0, 200.0)
"""Edges of the tempo classes, in beats per minute."""
TEMPO_MARGIN = 0.1
"""Part of a class, at either edge, where no tempo is drawn."""
CHORD_SECONDS = 1.0
CHORD_SHARES = {"major": 0.4, "minor": 0.4, "other": 0.2}
CHORDS = {
    (0, 4, 7): "major",
    (0, 4, 7, 10): "major",
    (0, 4, 7, 11): "major",
    (0, 3, 7): "minor",
    (0, 3, 7, 10): "minor",
    (0, 3, 6): "other",
    (0, 3, 6, 9): "other",
    (0, 3, 6, 10): "other",
    (0, 4, 8): "other",
    (0, 5, 7): "other",
}
"""Semitones above the root, and what the chord counts as."""
COLLECTION_SHARES = {"bach": 0.4, "oneills": 0.35, "airds": 0.25}
"""Of the excerpts for most tasks: scores with a declared key or a dance's metre."""
OTHER_COLLECTIONS = ("palestrina", "monteverdi")
"""In the task of collections alone."""
TUNES = ("oneills", "airds")
METRES = ("duple", "triple", "compound")
_TRIES = 10_000
PREROLL = 1.0
"""Seconds that are played before an excerpt and cut, so that it begins amid sound."""


@dataclass(frozen=True)
class Song:
    """An excerpt, settled before any audio is made.

    Attributes:
        start: in the score, quarter notes.
        tempo: beats per minute.
        transposition: semitones.
        voices: General MIDI program and shift in semitones; for a melody alone, all play it.
    """

    name: str
    split: str
    piece: Piece
    start: float
    tempo: float
    transposition: int
    voices: list[tuple[int, int]]
    seed: tuple[int, ...]
    seconds: float = SECONDS

    @property
    def beat(self) -> float:
        """Length of a beat in quarter notes."""
        return beat_of(self.piece.metre)

    @property
    def quarter(self) -> float:
        """Length of a quarter note in seconds."""
        return 60 / self.tempo / self.beat


def metre_of(metre: tuple[int, int]) -> str | None:
    """Return `duple` (2 or 4 beats), `triple`, `compound` (beats of three); None for others."""
    number, unit = metre
    if number in (6, 9, 12) and unit in (8, 4):
        return "compound"
    if number == 3 and unit in (2, 4):
        return "triple"
    return "duple" if number in (2, 4) and unit in (2, 4) else None


def beat_of(metre: tuple[int, int]) -> float:
    """Return the length of a beat in quarter notes."""
    return (3 if metre_of(metre) == "compound" else 1) * 4 / metre[1]


def split_of(piece: Piece) -> str:
    """Choose a split; pieces whose melodies begin alike share it, whatever their collection."""
    place = int(hashlib.sha1(piece.melody.encode()).hexdigest(), 16) % 100
    return "train" if place < 48 else "valid" if place < 60 else "test"


def plan(
    scores: Mapping[str, Sequence[Piece]],
    shares: Mapping[str, float],
    counts: Mapping[str, int],
    seed: int,
    stream: int = 0,
) -> list[Song]:
    """Plan `counts` excerpts of each split; more of them begin with the same.

    Args:
        shares: of the excerpts, by collection.
        stream: tells the draws of one set of excerpts from those of another.
    """
    songs = []
    for number, split in enumerate(SPLITS):
        pieces: dict[tuple[str, str], list[Piece]] = {}
        for collection in shares:
            for piece in scores[collection]:
                metre = metre_of(piece.metre)
                if metre is not None and split_of(piece) == split:
                    pieces.setdefault((collection, metre), []).append(piece)
        songs += [
            _draw(pieces, shares, split, i, (seed, stream + number, i))
            for i in range(counts[split])
        ]
    return songs


def _draw(
    pieces: Mapping[tuple[str, str], Sequence[Piece]],
    shares: Mapping[str, float],
    split: str,
    index: int,
    seed: tuple[int, ...],
) -> Song:
    rng = np.random.default_rng(seed)
    for _ in range(_TRIES):
        collection = str(rng.choice(list(shares), p=list(shares.values())))
        # Metres are equally frequent among tunes; other scores have what they have.
        names = [metre for metre in METRES if (collection, metre) in pieces]
        sizes = np.array([len(pieces[collection, metre]) for metre in names], float)
        share = np.ones(len(names)) if collection in TUNES else np.sqrt(sizes)
        metre = str(rng.choice(names, p=share / share.sum()))
        piece = pieces[collection, metre][rng.integers(len(pieces[collection, metre]))]
        tempo = _tempo(rng)
        needed = SECONDS * tempo / 60 * beat_of(piece.metre)
        room = piece.bars[-1] - piece.bars[0] - needed
        if room >= 0:
            return Song(
                f"{piece.name}_{split}{index:04d}",
                split,
                piece,
                piece.bars[0] + float(rng.uniform(0, room)),
                tempo,
                int(rng.integers(-6, 6)),
                _voices(rng, len(piece.parts)),
                seed,
            )
    raise ValueError(f"{split}: no score of {', '.join(shares)} has {SECONDS:g} s of whole bars")


def _tempo(rng: np.random.Generator) -> float:
    which = rng.integers(len(TEMPI) - 1)
    low, high = np.log(TEMPI[which : which + 2])
    margin = TEMPO_MARGIN * (high - low)
    return float(np.exp(rng.uniform(low + margin, high - margin)))


def _voices(rng: np.random.Generator, parts: int) -> list[tuple[int, int]]:
    """Draw a program per part, of one to four families; a lone melody gets one to four players."""
    families = rng.choice(list(FAMILIES), rng.integers(1, 5), replace=False)
    number = max(parts, len(families)) if parts > 1 else len(families)
    order = rng.permutation(np.arange(number) % len(families))
    programs = [int(rng.choice(FAMILIES[str(families[i])])) for i in order[:number]]
    shifts = [int(rng.choice([-12, 0, 12])) if parts == 1 else 0 for _ in programs]
    return list(zip(programs, shifts, strict=True))


def key_of(song: Song) -> str | None:
    """Return the key, such as `Eb minor`; None if the score declares none."""
    if song.piece.key is None:
        return None
    tonic, mode = song.piece.key
    return f"{PITCH_CLASSES[(tonic + song.transposition) % 12]} {mode}"


def families_of(song: Song) -> list[str]:
    """Return the families that sound for half a second or more, in alphabetical order."""
    stop = song.start + song.seconds / song.quarter  # in quarter notes, as notes are
    heard = set()
    for voice, (program, _) in enumerate(song.voices):
        notes = song.piece.parts[voice % len(song.piece.parts)]
        sounding = sum(
            max(0.0, min(on + length, stop) - max(on, song.start)) for on, length, _ in notes
        )
        if sounding * song.quarter >= 0.5:
            heard |= {name for name, programs in FAMILIES.items() if program in programs}
    return sorted(heard)


def tempo_of(song: Song) -> str:
    """Return the class of its tempo, such as `87-115`."""
    for low, high in pairwise(TEMPI):
        if song.tempo < high:
            return f"{low:g}-{high:g}"
    raise ValueError(f"{song.tempo} beats per minute are in no class")


def beats_of(song: Song) -> list[tuple[float, int]]:
    """Return seconds and position in the bar (1: downbeat) of each beat."""
    beats = []
    for bar, after in pairwise(song.piece.bars):
        for position in range(round((after - bar) / song.beat)):
            time = (bar + position * song.beat - song.start) * song.quarter
            if 0 <= time < song.seconds:
                beats.append((round(time, 3), position + 1))
    return beats


def plan_chords(
    chorales: Sequence[Piece], counts: Mapping[str, int], seed: int
) -> list[tuple[Song, str]]:
    """Plan `counts` chords of each split, as the chorales have them, and what they are.

    Only sets of notes that are a chord and nothing else count. Kinds are drawn with the shares of
    `CHORD_SHARES`, and keys evenly.
    """
    songs = []
    for number, split in enumerate(SPLITS):
        spans: dict[str, list[tuple[Piece, float, float, str]]] = {}
        for piece in chorales:
            if split_of(piece) == split and metre_of(piece.metre) is not None:
                for on, off, root, kind in _harmonies(piece):
                    if off - on >= beat_of(piece.metre):
                        spans.setdefault(kind, []).append((piece, on, off, root))
        songs += [_draw_chord(spans, split, i, (seed, 3 + number, i)) for i in range(counts[split])]
    return songs


def _draw_chord(
    spans: Mapping[str, Sequence[tuple[Piece, float, float, int]]],
    split: str,
    index: int,
    seed: tuple[int, ...],
) -> tuple[Song, str]:
    rng = np.random.default_rng(seed)
    kind = str(rng.choice(list(CHORD_SHARES), p=list(CHORD_SHARES.values())))
    piece, on, off, root = spans[kind][rng.integers(len(spans[kind]))]
    lasts = CHORD_SECONDS * float(rng.uniform(1, 1.3))
    tempo = 60 / (lasts / (off - on) * beat_of(piece.metre))
    transposition = int(rng.integers(-6, 6))
    name = f"{piece.name}_{split}{index:04d}"
    voices = _voices(rng, len(piece.parts))
    song = Song(name, split, piece, on, tempo, transposition, voices, seed, CHORD_SECONDS)
    return song, f"{PITCH_CLASSES[(root + transposition) % 12]} {kind}"


def _harmonies(piece: Piece) -> Iterator[tuple[float, float, int, str]]:
    """Find spans of one set of pitch classes that is a chord: onset, end, root, kind."""
    notes = [note for part in piece.parts for note in part]
    edges = sorted({round(time, 3) for on, length, _ in notes for time in (on, on + length)})
    span: tuple[float, frozenset[int], int] | None = None
    for on, off in pairwise([*edges, edges[-1] + 1]):
        middle = (on + off) / 2
        sounding = [pitch for first, length, pitch in notes if first < middle < first + length]
        pitches = frozenset(pitch % 12 for pitch in sounding)
        if span is not None and pitches == span[1]:
            continue
        if span is not None and (chord := _chord(span[1], span[2])):
            yield span[0], on, *chord
        span = (on, pitches, min(sounding)) if sounding else None


def _chord(pitches: frozenset[int], bass: int) -> tuple[int, str] | None:
    """Return root and kind; of several roots (augmented triad) the bass, None if it is no root."""
    roots = {
        root: CHORDS[above]
        for root in sorted(pitches)
        if (above := tuple(sorted((pitch - root) % 12 for pitch in pitches))) in CHORDS
    }
    if len(roots) > 1:
        roots = {root: kind for root, kind in roots.items() if root == bass % 12}
    return next(iter(roots.items()), None)
