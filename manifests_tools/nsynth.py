"""NSynth: `nsynth-instrument` and `nsynth-pitch`."""

from functools import partial
from pathlib import Path
from typing import Any

from manifests_tools.labelled import DataSet, Labelled, locate
from manifests_tools.probing import ProbingBuilder
from manifests_tools.tables import find_file
from music_ssl_fairseq.errors import InputError, one_line
from music_ssl_fairseq.probing.spec import SPLITS, ProbingSpec
from music_ssl_fairseq.runtime.texts import read_json

FAMILIES = (
    "bass", "brass", "flute", "guitar", "keyboard", "mallet", "organ", "reed", "string",
    "synth_lead", "vocal",
)  # fmt: skip
PITCHES = tuple(str(pitch) for pitch in range(128))
"""MIDI numbers, in the order of the pitch."""

PUBLISHED: dict[str, int | None] = {"train": 289_205, "valid": 12_678, "test": 4_096}

_MAX_BYTES = 1 << 30  # of examples.json; train's has some 200 MB

_SOURCE = "NSynth (https://magenta.tensorflow.org/datasets/nsynth, json/wav)"


def read(root: str, name: str, entry: str, classes: tuple[str, ...]) -> DataSet:
    """Read the labels of the task `name` from `entry` of each note; see `ProbingBuilder`."""
    splits = {}
    for split in SPLITS:
        folder = f"nsynth-{split}"
        notes = _read_notes(Path(root, folder), entry)
        splits[split] = [
            Labelled(locate(root, f"{folder}/audio/{note}.wav"), (label,))
            for note, label in notes.items()
        ]
    task = ProbingSpec(
        name, "multi-class", "accuracy", classes, published=PUBLISHED, counted="notes",
        source=_SOURCE,
    )  # fmt: skip
    return DataSet(task, splits)


def _read_notes(folder: Path, entry: str) -> dict[str, str]:
    """Return note -> entry."""
    file = find_file([folder], "examples.json", f"{_SOURCE}; --root holds {folder.name}/")

    def keep(note: dict[str, Any]) -> Any:
        # There are 300,000 notes: keep one entry of each while reading.
        return str(note[entry]) if entry in note else note

    notes = read_json(file, "was the archive unpacked whole?", _MAX_BYTES, keep)
    if not isinstance(notes, dict):
        raise InputError(f"{file}: no notes by name; was the archive unpacked whole?")
    for note, label in notes.items():
        if not isinstance(label, str):
            raise InputError(f"{file}: {one_line(note, 80)} has no {entry}")
    return notes


def _builder(name: str, what: str, entry: str, classes: tuple[str, ...]) -> ProbingBuilder:
    return ProbingBuilder(
        name,
        f"{what} of notes of four seconds. Source: {_SOURCE}.",
        "folder that holds nsynth-train/, nsynth-valid/ and nsynth-test/, each with audio/ and "
        "examples.json",
        partial(read, name=name, entry=entry, classes=classes),
    )


instrument = _builder("nsynth-instrument", "Instrument family", "instrument_family_str", FAMILIES)
pitch = _builder("nsynth-pitch", "MIDI pitch", "pitch", PITCHES)
