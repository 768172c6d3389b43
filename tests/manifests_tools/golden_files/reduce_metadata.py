"""Make the golden files of this folder: of published metadata, only what decides on the splits.

usage: python tests/manifests_tools/golden_files/reduce_metadata.py DIR

DIR holds the unpacked giantsteps-key-dataset/, giantsteps-mtg-key-dataset/ (annotations) and the
autotagging_*.tsv of MTG-Jamendo's split 0.
"""

import lzma
import sys
from pathlib import Path

HERE = Path(__file__).parent
SUBSETS = ("genre", "instrument", "moodtheme", "top50tags")
SPLITS = ("train", "validation", "test")


def giantsteps(folder: Path) -> None:
    """Lines `id, artists, key, confidence` of the MTG set, then `id, key` of the test set."""
    annotations = folder / "giantsteps-mtg-key-dataset" / "annotations"
    tables = [
        [line.split("\t") for line in (annotations / name).read_text("utf-8").splitlines()[1:]]
        for name in ("annotations.txt", "beatport_metadata.txt")
    ]
    artists = {row[0]: row[1] for row in tables[1]}
    lines = [f"{song}\t{artists[song]}\t{key}\t{c}" for song, key, c in tables[0]]
    keys = sorted((folder / "giantsteps-key-dataset" / "annotations" / "key").iterdir())
    lines += [f"{file.name.partition('.')[0]}\t{file.read_text()}" for file in keys]
    write("giantsteps.xz", lines)


def mtg_jamendo(folder: Path) -> None:
    """Print each subset's tags, then a line per track: its number less the last, split, subsets."""
    tags: dict[str, set[str]] = {subset: set() for subset in SUBSETS}
    tracks: dict[int, tuple[str, int]] = {}
    for bit, subset in enumerate(SUBSETS):
        for split in SPLITS:
            text = (folder / f"autotagging_{subset}-{split}.tsv").read_text("utf-8")
            for line in text.splitlines()[1:]:
                track, _, _, _, _, *its_tags = line.split("\t")
                number = int(track.removeprefix("track_"))
                _, subsets = tracks.get(number, ("", 0))
                tracks[number] = (split, subsets | 1 << bit)
                tags[subset].update(its_tags)
    lines = ["\t".join([subset, *sorted(tags[subset])]) for subset in SUBSETS]
    last = 0
    for number in sorted(tracks):
        split, subsets = tracks[number]
        lines.append(f"{number - last} {SPLITS.index(split)} {subsets}")
        last = number
    write("mtg_jamendo.xz", lines)


def write(name: str, lines: list[str]) -> None:
    data = lzma.compress("\n".join(lines).encode(), preset=9)
    (HERE / name).write_bytes(data)
    print(f"{name}: {len(lines)} lines, {len(data)} bytes")


if __name__ == "__main__":
    giantsteps(Path(sys.argv[1]))
    mtg_jamendo(Path(sys.argv[1]))
