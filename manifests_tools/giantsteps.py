"""GiantSteps: `giantsteps-key`, tested on GiantSteps Key, trained on GiantSteps MTG Key.

Training songs are those of the MTG set with confidence 2 and one key. They are split by artist. An
artist validates if the SHA-1 of its name in lower case, modulo 116, is 100 or more. So do artists
that share a song of the set, of any confidence, with a validating artist, directly or through
others. No artist is on both sides.
"""

import hashlib
import os
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

from manifests_tools.keys import KEYS, normalise_key
from manifests_tools.labelled import DataSet, Labelled, locate
from manifests_tools.probing import ProbingBuilder
from manifests_tools.tables import find_file, read_table
from music_ssl_fairseq.errors import InputError
from music_ssl_fairseq.probing.spec import ProbingSpec
from music_ssl_fairseq.runtime.texts import read_text

PUBLISHED: dict[str, int | None] = {"train": 923, "valid": 236, "test": 604}
CONFIDENT = "2"

_TRAIN_SHARE, _PARTS = 100, 116

_TEST = "https://github.com/GiantSteps/giantsteps-key-dataset"
_TRAIN = "https://github.com/GiantSteps/giantsteps-mtg-key-dataset"


def read(root: str, metadata: str | None = None) -> DataSet:
    """Read the labels of `giantsteps-key`; see `ProbingBuilder`."""
    where = metadata or root
    training = _folder(where, "giantsteps-mtg-key", _TRAIN)
    keys = training_keys(training)
    places = [Path(training, "annotations"), Path(training)]
    file = find_file(places, "beatport_metadata.txt", _TRAIN)
    songs = read_table(file, ["ID", "ARTIST"]).items()
    artists = {song: [name.strip() for name in names.split(",")] for song, (names,) in songs}
    validating = validating_artists(artists.values())
    splits: dict[str, list[Labelled]] = {"train": [], "valid": [], "test": []}
    folder = os.path.basename(_folder(root, "giantsteps-mtg-key", _TRAIN))
    for song, key in keys.items():
        split = "valid" if validating & set(artists[song]) else "train"
        splits[split].append(Labelled(_audio(root, folder, song), (key,)))
    folder = os.path.basename(_folder(root, "giantsteps-key", _TEST))
    testing = Path(_folder(where, "giantsteps-key", _TEST), "annotations", "key")
    files = sorted(testing.glob("*.key"))
    if not files:
        raise InputError(f"{testing}: no .key file in it; they are part of {_TEST}")
    for file in files:
        song, text = file.name.partition(".")[0], read_text(file)
        try:
            key = normalise_key(text)
        except ValueError as error:
            raise InputError(f"{file}: {error}") from None
        splits["test"].append(Labelled(_audio(root, folder, song), (key,)))
    task = ProbingSpec(
        "giantsteps-key",
        "key",
        "weighted_key_score",
        KEYS,
        published=PUBLISHED,
        counted="songs",
        source=f"{_TRAIN}; {_TEST}",
    )
    return DataSet(task, splits)


def _folder(parent: str, start: str, source: str) -> str:
    """Return the folder whose name begins with `start`: as cloned, or from an archive."""
    found = sorted(path for path in Path(parent).glob(f"{start}*") if path.is_dir())
    if not found:
        raise InputError(
            f"{parent}: no folder {start}-dataset in it; --root takes the folder that holds both "
            f"data sets side by side, see {source}"
        )
    return str(found[0])


def _audio(root: str, folder: str, song: str) -> str:
    return locate(root, f"{folder}/audio/{song}.LOFI.mp3", f"{folder}/audio/{song}.mp3")


def training_keys(folder: str) -> dict[str, str]:
    """Return song -> key, for songs of the MTG set with confidence 2 and one key."""
    file = find_file([Path(folder, "annotations"), folder], "annotations.txt", _TRAIN)
    keys = {}
    for song, (key, confidence) in read_table(file, ["ID", "MANUAL KEY", "C"]).items():
        if confidence == CONFIDENT:
            try:
                keys[song] = normalise_key(key)
            except ValueError:
                continue  # several keys, or none
    return keys


def validating_artists(songs: Iterable[list[str]]) -> set[str]:
    """Choose the artists of the validation split, from the artists of all songs."""
    together = defaultdict(set)
    for artists in songs:
        for artist in artists:
            together[artist].update(artists)
    hashes = {artist: hashlib.sha1(artist.lower().encode("utf-8")) for artist in together}
    parts = {artist: int(found.hexdigest(), 16) % _PARTS for artist, found in hashes.items()}
    waiting = [artist for artist in together if parts[artist] >= _TRAIN_SHARE]
    validating: set[str] = set()
    while waiting:
        artist = waiting.pop()
        if artist not in validating:
            validating.add(artist)
            waiting += together[artist]
    return validating


key = ProbingBuilder(
    "giantsteps-key",
    "Key of two-minute previews of electronic dance music: train and valid from GiantSteps MTG Key "
    f"({_TRAIN}), test from GiantSteps Key ({_TEST}). Whole songs are listed; the probe's windows "
    "cut them.",
    "folder that holds giantsteps-key-dataset/ and giantsteps-mtg-key-dataset/, each with audio/",
    read,
    {
        "--metadata DIR": {
            "help": "folder that holds giantsteps-key-dataset/annotations and "
            "giantsteps-mtg-key-dataset/annotations, if not below --root",
        }
    },
)
