"""MagnaTagATune: `mtt`, the 50 most frequent of its 188 tags."""

from collections import Counter
from pathlib import Path

from manifests_tools.labelled import DataSet, Labelled, locate
from manifests_tools.probing import ProbingBuilder
from manifests_tools.tables import find_file, read_named
from music_ssl_fairseq.errors import InputError
from music_ssl_fairseq.probing.spec import ProbingSpec

NUM_TAGS = 50
DAMAGED = ("35644", "55753", "57881")
"""Clips whose mp3 files are empty in the archive."""

PUBLISHED: dict[str, int | None] = {"train": 18_706, "valid": 1_825, "test": 5_329}

_SPLITS = {"train": "0123456789ab", "valid": "c", "test": "def"}
_SOURCE = "MagnaTagATune (https://mirg.city.ac.uk/codeapps/the-magnatagatune-dataset)"


def read(root: str, annotations: str | None = None) -> DataSet:
    """Read the labels of `mtt`; see `ProbingBuilder`."""
    if annotations is not None:
        file = find_file([Path(annotations).parent], Path(annotations).name, _SOURCE)
    else:
        hint = f"{_SOURCE}; --annotations tells where"
        file = find_file([root, Path(root).parent], "annotations_final.csv", hint)
    tags, clips = _read_clips(file)
    counts = Counter(dict.fromkeys(tags, 0))  # in this order, so that tags further left win ties
    counts.update(tag for _, _, given in clips for tag in given)
    frequent = {tag for tag, _ in counts.most_common(NUM_TAGS)}
    splits: dict[str, list[Labelled]] = {split: [] for split in _SPLITS}
    split_of = {folder: split for split, folders in _SPLITS.items() for folder in folders}
    skipped = []
    for clip, path, given in clips:
        if clip in DAMAGED:
            skipped.append(path)
            continue
        labels = tuple(sorted(tag for tag in given if tag in frequent))
        folder, slash, _ = path.partition("/")
        if folder not in split_of or not slash:
            raise InputError(f"{file}: {path!r} is in none of the folders 0 to f")
        splits[split_of[folder]].append(Labelled(locate(root, path, f"mp3/{path}"), labels))
    task = ProbingSpec(
        "mtt",
        "multi-label",
        "macro_roc_auc",
        tuple(sorted(frequent)),
        published=PUBLISHED,
        counted="clips",
        skipped=tuple(skipped),
        source=_SOURCE,
    )
    return DataSet(task, splits)


def _read_clips(file: Path) -> tuple[list[str], list[tuple[str, str, list[str]]]]:
    """Return all tags, and each clip's number, file and tags."""
    header, lines, _ = read_named(file, quotes=True)
    if header[:1] != ["clip_id"] or header[-1:] != ["mp3_path"]:
        raise InputError(
            f"{file}: its first line does not run from clip_id to mp3_path, separated by tabs; "
            f"take it from {_SOURCE}"
        )
    tags = header[1:-1]
    clips = []
    for number, row in lines:
        if len(row) != len(header):
            raise InputError(f"{file}, line {number}: {len(row)} cells, not {len(header)}")
        given = [tag for tag, cell in zip(tags, row[1:-1], strict=True) if cell == "1"]
        clips.append((row[0], row[-1], given))
    return tags, clips


tagging = ProbingBuilder(
    "mtt",
    f"The 50 most frequent tags of 25,863 clips of 29 s. Source: {_SOURCE}.",
    "folder that holds 0/ to f/ with mp3 files, or mp3/ with these",
    read,
    {
        "--annotations FILE": {
            "help": "annotations_final.csv (default: in --root or beside it)",
        }
    },
)
