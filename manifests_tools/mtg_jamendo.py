"""MTG-Jamendo, split 0: `mtg-instrument`, `mtg-moodtheme`, `mtg-genre` and `mtg-top50`."""

from functools import partial
from pathlib import Path
from typing import Any

from manifests_tools.examine import ExaminedTrack
from manifests_tools.labelled import DataSet, Labelled, locate
from manifests_tools.probing import ProbingBuilder
from manifests_tools.tables import find_file, read_lines
from music_ssl_fairseq.cli import real_number
from music_ssl_fairseq.errors import InputError
from music_ssl_fairseq.frames import SAMPLE_RATE
from music_ssl_fairseq.probing.spec import ProbingSpec
from music_ssl_fairseq.probing.writer import Example

PUBLISHED: dict[str, dict[str, int | None]] = {
    "instrument": {"train": 14_395, "valid": 5_466, "test": 5_115},
    "moodtheme": {"train": 9_949, "valid": 3_802, "test": 4_231},
    "genre": {"train": 32_572, "valid": 11_043, "test": 11_479},
    "top50": {"train": 32_136, "valid": 10_888, "test": 11_356},
}

_FILES = {"train": "train", "valid": "validation", "test": "test"}
_SOURCE = "MTG-Jamendo (https://github.com/MTG/mtg-jamendo-dataset, data/splits/split-0)"


def read(
    root: str, subset: str, metadata: str | None = None, excerpt_seconds: float = 30.0
) -> DataSet:
    """Read the labels of `mtg-SUBSET`; see `ProbingBuilder`."""
    splits = {split: _read_split(root, subset, split, metadata) for split in _FILES}
    classes = {label for items in splits.values() for item in items for label in item.label}
    task = ProbingSpec(
        f"mtg-{subset}",
        "multi-label",
        "macro_roc_auc",
        tuple(sorted(classes)),
        published=PUBLISHED[subset],
        source=_SOURCE,
    )
    return DataSet(task, splits, partial(middle, seconds=excerpt_seconds))


def _read_split(root: str, subset: str, split: str, metadata: str | None) -> list[Labelled]:
    name = f"autotagging_{'top50tags' if subset == 'top50' else subset}-{_FILES[split]}.tsv"
    below = Path(metadata or root)
    folders = [
        place / folder
        for place in (below, below / "mtg-jamendo-dataset", below.parent)
        for folder in ("", "data/splits/split-0", "split-0")
    ]
    file = find_file(folders, name, f"{_SOURCE}; --metadata tells where it is")
    items = []
    lines = read_lines(file)
    if lines and lines[0].cells[3:4] != ["PATH"]:
        raise InputError(f"{file}: no column PATH in its first line; take it from {_SOURCE}")
    for number, cells in lines[1:]:
        # TRACK_ID, ARTIST_ID, ALBUM_ID, PATH, DURATION, then a tag in each column.
        tags = tuple(tag for tag in cells[5:] if tag)
        if not tags:
            raise InputError(f"{file}, line {number}: no tag; was the file cut off?")
        path = cells[3]
        items.append(Labelled(locate(root, path, path.replace(".mp3", ".low.mp3")), tags))
    return items


def middle(item: Labelled, track: ExaminedTrack, seconds: float) -> list[Example]:
    """Return the middle `seconds` of a track; all of it for 0, or if it is shorter."""
    length = track.num_samples / SAMPLE_RATE
    segment = None
    if 0 < seconds < length:
        start = round((length - seconds) / 2, 3)
        segment = (start, start + seconds)
    return [Example(item.name, track.num_samples, item.label, segment)]


_OPTIONS: dict[str, dict[str, Any]] = {
    "--metadata DIR": {
        "help": "folder with autotagging_*-{train,validation,test}.tsv, or the cloned repository "
        "(default: looked for in --root and beside it)",
    },
    "--excerpt-seconds S": {
        "help": "use the middle S seconds of each track, 0 for all of it",
        "default": 30.0,
        "type": real_number(0),
    },
}


def _builder(subset: str, what: str) -> ProbingBuilder:
    return ProbingBuilder(
        f"mtg-{subset}",
        f"{what} of songs from Jamendo, of split 0 of {_SOURCE}.",
        "folder that holds 00/ to 99/, with tracks such as 41/241.mp3 or 41/241.low.mp3",
        partial(read, subset=subset),
        _OPTIONS,
    )


instrument = _builder("instrument", "40 instruments")
moodtheme = _builder("moodtheme", "56 moods and themes")
genre = _builder("genre", "87 genres")
top50 = _builder("top50", "The 50 most frequent tags")
