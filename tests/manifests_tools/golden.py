"""Published metadata of GiantSteps and MTG-Jamendo, as far as it decides on their splits.

`tests/manifests_tools/golden_files/reduce_metadata.py` makes the files that are unpacked here.
"""

import lzma
from pathlib import Path

DATA = Path(__file__).with_name("golden_files")


def lines(name: str) -> list[str]:
    return lzma.decompress((DATA / name).read_bytes()).decode().split("\n")


def write_giantsteps(folder: Path) -> list[str]:
    """Both data sets' annotations below `folder`; returns the names of their audio."""
    training = folder / "giantsteps-mtg-key-dataset" / "annotations"
    keys = folder / "giantsteps-key-dataset" / "annotations" / "key"
    training.mkdir(parents=True)
    keys.mkdir(parents=True)
    annotations, metadata, audio = ["ID\tMANUAL KEY\tC"], ["ID\tARTIST\tSONG TITLE"], []
    for line in lines("giantsteps.xz"):
        song, *rest = line.split("\t")
        if len(rest) == 3:
            artists, key, confidence = rest
            annotations.append(f"{song}\t{key} \t{confidence} ")
            metadata.append(f'{song}\t{artists}\t"7 inch')
            audio.append(f"giantsteps-mtg-key-dataset/audio/{song}.LOFI.mp3")
        else:
            (keys / f"{song}.LOFI.key").write_text(rest[0])
            audio.append(f"giantsteps-key-dataset/audio/{song}.LOFI.mp3")
    (training / "annotations.txt").write_text("\n".join(annotations) + "\n")
    (training / "beatport_metadata.txt").write_text("\n".join(metadata) + "\n")
    return audio


def write_mtg_jamendo(folder: Path) -> dict[str, list[str]]:
    """Write the twelve tables of split 0, and return each subset's audio."""
    subsets, tracks = lines("mtg_jamendo.xz")[:4], lines("mtg_jamendo.xz")[4:]
    tags = {subset: rest for subset, *rest in (line.split("\t") for line in subsets)}
    splits = ("train", "validation", "test")
    rows: dict[tuple[str, str], list[str]] = {(a, b): [] for a in tags for b in splits}
    audio: dict[str, list[str]] = {subset: [] for subset in tags}
    number = 0
    for line in tracks:
        step, split, members = map(int, line.split())
        number += step
        for bit, subset in enumerate(tags):
            if members >> bit & 1:
                its = rows[subset, splits[split]]
                some = [tags[subset][(len(its) + i) % len(tags[subset])] for i in (0, 7)]
                path = f"{number % 100:02d}/{number}.mp3"
                cells = [f"track_{number:07d}", "artist_1", "album_1", path, "99.9"]
                its.append("\t".join(cells + some[: 1 + number % 2]))
                audio[subset].append(path)
    folder.mkdir(parents=True, exist_ok=True)
    header = "TRACK_ID\tARTIST_ID\tALBUM_ID\tPATH\tDURATION\tTAGS"
    for (subset, split), its in rows.items():
        text = "\r\n".join([header, *its, ""])
        (folder / f"autotagging_{subset}-{split}.tsv").write_bytes(text.encode())
    return audio
