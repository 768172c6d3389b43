"""GTZAN: `gtzan-genre`, and `gtzan-beat` with the beats of GTZAN-Rhythm.

The split is the fault-filtered one (Kereliuk, Sturm, Larsen 2015; Sturm 2013), which leaves out
repetitions, mislabelled and distorted excerpts, and keeps artists on one side. Its lists are part
of this package.
"""

import os
from collections.abc import Callable, Iterable
from importlib import resources
from pathlib import Path

from manifests_tools.beat_files import beats_within, read_beat_file
from manifests_tools.labelled import DataSet, Labelled, locate
from manifests_tools.probing import ProbingBuilder
from music_ssl_fairseq.errors import InputError
from music_ssl_fairseq.probing.spec import SPLITS, ProbingSpec

GENRES = (
    "blues", "classical", "country", "disco", "hiphop", "jazz", "metal", "pop", "reggae", "rock",
)  # fmt: skip
PUBLISHED: dict[str, int | None] = {"train": 443, "valid": 197, "test": 290}

_FOLDERS = (
    "", "genres", "genres_original", "Data/genres_original", "gtzan/genres",
    "gtzan_genre/genres",  # mirdata's
)  # fmt: skip
_SOURCE = "GTZAN (https://www.kaggle.com/datasets/andradaolteanu/gtzan-dataset-music-genre-classification)"
_BEATS = (
    "GTZAN-Rhythm (http://anasynth.ircam.fr/home/media/GTZAN-rhythm), or the .beats files of "
    "https://github.com/TempoBeatDownbeat/gtzan_tempo_beat"
)


def listed(split: str) -> list[str]:
    """Return the excerpts of a split, as `blues/blues.00029.wav`."""
    text = (
        resources.files("manifests_tools").joinpath("data", f"gtzan_{split}.txt").read_text("utf-8")
    )
    return text.split()


def read_genre(root: str) -> DataSet:
    """Read the labels of `gtzan-genre`; see `ProbingBuilder`."""
    task = ProbingSpec(
        "gtzan-genre", "multi-class", "accuracy", GENRES, published=PUBLISHED, source=_SOURCE
    )
    folder = _genre_folder(root)
    return DataSet(task, _splits(root, folder, lambda name: (name.partition("/")[0],)))


def read_beats(root: str, annotations: str | None = None) -> DataSet:
    """Read the labels of `gtzan-beat`; see `ProbingBuilder`."""
    folder = _genre_folder(root)
    names = ("jams", "beats", "rev1.0/jams", "rhythm/jams", "gtzan_tempo_beat/beats")
    named = [Path(root, name) for name in names] + sorted(Path(root).glob("*/beats"))
    places = [*named, *Path(root).glob("*/jams"), Path(root)]
    beats = _index_beats([Path(annotations)] if annotations else places)

    def cells(name: str) -> tuple[str, ...]:
        excerpt = Path(name).stem
        if excerpt not in beats:
            raise InputError(f"no beats of {excerpt} in the annotations; they are part of {_BEATS}")
        return read_beat_file(beats[excerpt])

    source = f"{_SOURCE}; {_BEATS}"
    task = ProbingSpec("gtzan-beat", "beats", "f_measure", published=PUBLISHED, source=source)
    return DataSet(task, _splits(root, folder, cells), beats_within)


def _splits(
    root: str, folder: str, label: Callable[[str], tuple[str, ...]]
) -> dict[str, list[Labelled]]:
    return {
        split: [Labelled(_audio(root, folder, name), label(name)) for name in listed(split)]
        for split in SPLITS
    }


def _genre_folder(root: str) -> str:
    for folder in _FOLDERS:
        if all(os.path.isdir(os.path.join(root, folder, genre)) for genre in GENRES):
            return folder
    raise InputError(
        f"{root}: no folder for each of the {len(GENRES)} genres (blues, ..., rock) in it or in "
        f"{', '.join(_FOLDERS[1:])}; --root takes the unpacked {_SOURCE}"
    )


def _audio(root: str, folder: str, name: str) -> str:
    # The original archive holds .au files.
    stem = os.path.join(folder, os.path.splitext(name)[0])
    return locate(root, f"{stem}.wav", f"{stem}.au")


def _index_beats(folders: Iterable[Path]) -> dict[str, Path]:
    """Return excerpt -> file of beats, from the first folder that has any."""
    folders = list(folders)
    for folder in folders:
        found: dict[str, Path] = {}
        files = sorted(folder.glob("*"), key=lambda file: (file.suffix.lower() != ".jams", file))
        for file in files:
            if file.suffix.lower() in (".jams", ".beats"):
                found.setdefault(_excerpt(file), file)
        if found:
            return found
    raise InputError(
        f"{folders[-1]}: no .jams and no .beats file in it; --annotations takes the folder that "
        f"holds those of {_BEATS}"
    )


def _excerpt(file: Path) -> str:
    """Return `blues.00029` for `blues.00029.wav.jams` or `gtzan_blues_00029.beats`."""
    name = file.stem.removesuffix(".wav").removesuffix(".WAV")
    return name.removeprefix("gtzan_").replace("_", ".")


_ROOT = "folder that holds genres/, genres_original/ or the folders of the ten genres"
_ABOUT = "1000 excerpts of 30 s in ten genres, of which the fault-filtered lists keep 930."

genre = ProbingBuilder("gtzan-genre", f"Genre of {_ABOUT} Source: {_SOURCE}.", _ROOT, read_genre)
beat = ProbingBuilder(
    "gtzan-beat",
    f"Beat times of {_ABOUT} Audio: {_SOURCE}. Beats: {_BEATS}.",
    _ROOT,
    read_beats,
    {
        "--annotations DIR": {
            "help": f"folder with a .jams or .beats file for each excerpt: {_BEATS} (default: "
            "looked for below --root, in jams/ and beats/)",
        }
    },
)
