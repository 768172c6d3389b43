"""Write the splits of a probing task, and check that they share no files or songs."""

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from music_ssl_fairseq.data.manifest import Manifest, write_manifest
from music_ssl_fairseq.errors import InputError
from music_ssl_fairseq.frames import SAMPLE_RATE
from music_ssl_fairseq.probing.labels import read_cells
from music_ssl_fairseq.probing.spec import SPLITS
from music_ssl_fairseq.runtime.files import atomic_path


@dataclass(frozen=True)
class Example:
    """One manifest row of a split, with its label."""

    name: str  # the file, relative to the manifest's root
    num_samples: int  # length of the whole file at 16 kHz
    label: tuple[str, ...]  # cells of its line of labels
    # (start, stop) in seconds, or None for the whole file
    segment: tuple[float, float] | None = None
    group: str | None = None  # name of its song, or None for the file itself


def write_split(
    folder: str | os.PathLike, split: str, root: str | os.PathLike, examples: Sequence[Example]
) -> None:
    """Write manifest, labels and, if any example has them, segments and groups, atomically."""
    folder = Path(folder)
    _write_cells(folder / f"{split}.labels", (example.label for example in examples))
    segments, groups = folder / f"{split}.segments", folder / f"{split}.groups"
    if any(example.segment for example in examples):
        _write_cells(segments, (_segment(example) for example in examples))
    else:
        segments.unlink(missing_ok=True)
    if any(example.group is not None for example in examples):
        _write_cells(groups, ((example.group or example.name,) for example in examples))
    else:
        groups.unlink(missing_ok=True)
    write_manifest(
        folder / f"{split}.tsv", root, [(item.name, item.num_samples) for item in examples]
    )


def remove_split(folder: str | os.PathLike, split: str) -> None:
    """Remove the files of a split, if it was written by an earlier run."""
    for suffix in (".tsv", ".labels", ".segments", ".groups"):
        Path(folder, f"{split}{suffix}").unlink(missing_ok=True)


def _segment(example: Example) -> tuple[str, str]:
    start, stop = example.segment or (0.0, example.num_samples / SAMPLE_RATE)
    return f"{start:.10g}", f"{stop:.10g}"


def _write_cells(file: Path, lines: Iterable[Sequence[str]]) -> None:
    with atomic_path(file) as temporary, temporary.open("wb") as handle:
        for cells in lines:
            handle.write("\t".join(cells).encode("utf-8", "surrogateescape") + b"\n")


def check_leakage(folder: str | os.PathLike) -> None:
    """Refuse a folder with a file, or a song of `.groups`, in two splits.

    Raises InputError naming the first one; or if a manifest cannot be read.
    """
    files: dict[str, str] = {}
    songs: dict[str, str] = {}
    for split in SPLITS:
        file = Path(folder, f"{split}.tsv")
        if not file.exists():
            continue
        manifest = Manifest(file)
        names = {os.path.normpath(manifest.path(i)) for i in range(len(manifest))}
        refuse_shared(files, split, names, f"{file}: ")
        groups = file.with_suffix(".groups")
        if groups.exists():
            names = {"\t".join(cells) for cells in read_cells(groups, manifest)}
            refuse_shared(songs, split, names, f"{groups}: group ")


def refuse_shared(seen: dict[str, str], split: str, names: Iterable[str], where: str) -> None:
    """Note the split of each name in `seen`.

    Raises InputError if a name is in another split already; the message begins with `where`.
    """
    shared = sorted(name for name in names if seen.setdefault(name, split) != split)
    if shared:
        more = f" (and {len(shared) - 1} more)" if len(shared) > 1 else ""
        raise InputError(
            f"{where}{shared[0]} is in {seen[shared[0]]} and in {split}{more}: leakage, the probe "
            "would be scored on what it learned from; keep it in one split"
        )
