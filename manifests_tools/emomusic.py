"""emoMusic: `emomusic`, arousal and valence of excerpts of 45 s.

The evaluation set of MediaEval 2013 tests. Of the development set an artist validates if the SHA-1
of its name (lower case, letters a to z and single spaces only), modulo 10, is 8 or 9.
"""

import hashlib
from pathlib import Path

from manifests_tools.labelled import DataSet, Labelled, locate
from manifests_tools.probing import ProbingBuilder
from manifests_tools.tables import find_file, read_table
from music_ssl_fairseq.errors import InputError
from music_ssl_fairseq.probing.spec import ProbingSpec, parse_number

PUBLISHED: dict[str, int | None] = {"train": 504, "valid": 115, "test": 125}
TARGETS = ("arousal", "valence")

_TRAIN_SHARE, _PARTS = 8, 10
_SOURCE = "emoMusic (https://cvml.unige.ch/databases/emoMusic)"
_SETS = ("development", "evaluation")


def read(root: str, metadata: str | None = None) -> DataSet:
    """Read the labels of `emomusic`; see `ProbingBuilder`."""
    folders = [Path(metadata)] if metadata else [Path(root), Path(root, "annotations")]
    hint = f"{_SOURCE}, annotations.tar.gz; --metadata tells where it is"
    ratings = _read_ratings(find_file(folders, "static_annotations.csv", hint))
    file = find_file(folders, "songs_info.csv", hint)
    splits: dict[str, list[Labelled]] = {"train": [], "valid": [], "test": []}
    columns = ["song_id", "Artist", "Mediaeval 2013 set"]
    for song, (artist, which) in read_table(file, columns, ",", quotes=True).items():
        if song not in ratings:
            raise InputError(f"{file}: song {song} is not in static_annotations.csv")
        if which not in _SETS:
            raise InputError(f"{file}: song {song} is in the set {which!r}, not in {_SETS}")
        split = "test" if which == "evaluation" else split_of(artist)
        name = locate(root, f"clips_45seconds/{song}.mp3", f"{song}.mp3")
        splits[split].append(Labelled(name, ratings[song]))
    task = ProbingSpec(
        "emomusic", "regression", "r2", targets=TARGETS, published=PUBLISHED, source=_SOURCE
    )
    return DataSet(task, splits)


def _read_ratings(file: Path) -> dict[str, tuple[str, str]]:
    """Return song -> mean arousal and mean valence, from 1 to 9."""
    columns = ["song_id", *(f"mean_{target}" for target in TARGETS)]
    songs = read_table(file, columns, ",", quotes=True).items()
    try:
        return {song: (str(parse_number(a)), str(parse_number(v))) for song, (a, v) in songs}
    except ValueError as error:
        raise InputError(f"{file}: a rating is not a number ({error})") from None


def split_of(artist: str) -> str:
    """Return `train` or `valid`."""
    letters = "".join(c for c in artist.lower() if "a" <= c <= "z" or c.isspace())
    name = " ".join(letters.split())
    part = int(hashlib.sha1(name.encode("ascii")).hexdigest(), 16) % _PARTS
    return "train" if part < _TRAIN_SHARE else "valid"


emotion = ProbingBuilder(
    "emomusic",
    f"Arousal and valence, as rated by listeners, of 744 excerpts of 45 s. Source: {_SOURCE}.",
    "folder that holds clips_45seconds/, with excerpts such as 2.mp3",
    read,
    {
        "--metadata DIR": {
            "help": "folder with songs_info.csv and static_annotations.csv (default: --root, or "
            "annotations/ in it)",
        }
    },
)
