"""The open tasks: what each is made of, and how it is probed."""

import csv
import hashlib
import io
from collections.abc import Iterable, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from music_ssl_fairseq.errors import InputError
from music_ssl_fairseq.runtime.files import atomic_path

SPLITS = ("train", "valid", "test")
Row = tuple[str, str, str]
"""Path below the data's folder, label, split: a line of a task's CSV."""

_BEATS = {"model.learning_rates": [1e-3]}


@dataclass(frozen=True)
class OpenTask:
    """One probing task.

    Attributes:
        kind: as `manifests_tools custom` takes it.
        metric: decides on validation, and is what the table shows.
        at_most: clips of train, valid and test; None for all.
        small: the same, of the small form.
        settings: of the probe, beside those of examples/probing/config.yaml.
    """

    name: str
    kind: str
    metric: str
    at_most: tuple[int, int, int] | None = None
    small: tuple[int, int, int] = (50, 20, 60)
    settings: dict[str, Any] = field(default_factory=dict)


TASKS = (
    OpenTask("key", "key", "weighted_key_score"),
    OpenTask("chord", "multi-class", "accuracy", small=(150, 50, 120)),
    OpenTask("pitch", "multi-class", "accuracy", small=(120, 40, 100)),
    OpenTask("instrument", "multi-class", "accuracy", small=(100, 40, 100)),
    OpenTask("families", "multi-label", "macro_average_precision"),
    OpenTask("beat", "beats", "f_measure", (400, 100, 1000), (16, 8, 24), _BEATS),
    OpenTask(
        "downbeat",
        "beats",
        "f_measure",
        (400, 100, 1000),
        (16, 8, 24),
        {**_BEATS, "task.decoder": "peaks"},  # bars are longer than the network's beats may be
    ),
    OpenTask("tempo", "multi-class", "accuracy"),
    OpenTask("metre", "multi-class", "accuracy"),
    OpenTask("collection", "multi-class", "accuracy", small=(40, 15, 45)),
    OpenTask("package", "multi-class", "accuracy", small=(40, 15, 45)),
    OpenTask("speaker", "multi-class", "accuracy", small=(100, 40, 80)),
)


_SIDE_BY_SIDE = (("beat", "downbeat"), ("chord", "pitch", "instrument"))
"""Tasks of one process beside those of the others: who has the same clips shares features."""


def side_by_side(chosen: Sequence[OpenTask]) -> list[list[OpenTask]]:
    """Divide tasks among processes."""
    named = [[task for task in chosen if task.name in names] for names in _SIDE_BY_SIDE]
    others = [task for task in chosen if not any(task in group for group in named)]
    return [group for group in (*named, others) if group]


def unit(name: str) -> str:
    """Return what a clip is a part of: a score, a program of a soundfont, a track."""
    return Path(name).stem.rpartition("_")[0]


def chosen(names: Sequence[str], data: Path) -> list[OpenTask]:
    """Return the tasks of these names, or all whose CSV is there.

    Raises:
        InputError: if there is no such task, or no CSV of one that was named, or none at all.
    """
    known = {task.name: task for task in TASKS}
    unknown = [name for name in names if name not in known]
    if unknown:
        raise InputError(f"--tasks: no task {unknown[0]!r}; there are {', '.join(known)}")
    wanted = list(names) or [name for name in known if (data / f"{name}.csv").exists()]
    for name in wanted or known:
        if not (data / f"{name}.csv").exists():
            raise InputError(
                f"{data}: no {name}.csv; make the data with examples/open_tasks/build.py"
            )
    return [known[name] for name in wanted]


def rows_of(task: OpenTask, data: Path, small: bool) -> list[Row]:
    """Choose the lines of its CSV evenly: tasks on the same files keep the same."""
    with (data / f"{task.name}.csv").open(newline="", encoding="utf-8") as file:
        lines = [(row["path"], row["label"], row["split"]) for row in csv.DictReader(file)]
    limits = task.small if small else task.at_most
    if limits is None:
        return lines
    found = []
    for split, limit in zip(SPLITS, limits, strict=True):
        of_split = [row for row in lines if row[2] == split]
        of_split.sort(key=lambda row: hashlib.sha1(row[0].encode()).hexdigest())
        found += sorted(of_split[:limit])
    return found


def sound(data: Path, names: Iterable[str]) -> str:
    """Digest what clips sound like: of FLAC the samples, of other formats the file.

    Args:
        names: below the folder of data.
    """
    digest = hashlib.sha256()
    for name in sorted(names):
        with (data / name).open("rb") as file:
            header = file.read(42)
            samples = header[26:] if header.startswith(b"fLaC") else b""
            # An encoder that writes to a pipe leaves the digest of the samples empty.
            digest.update(samples if any(samples) else header + file.read())
    return digest.hexdigest()


def build(task: OpenTask, data: Path, out: Path, small: bool) -> str:
    """Make the folder for `task.data`, if it is not there as it should be.

    Returns:
        a digest of its files' names and labels, wherever they lie.
    """
    from manifests_tools import custom

    rows = rows_of(task, data, small)
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([("path", "label", "split"), *rows])
    described = f"{task.kind} {task.metric}\n{text.getvalue()}"
    digest = hashlib.sha256(described.encode()).hexdigest()
    # Lengths in manifests are those of the audio.
    made_of = f"{data.resolve()}\n{digest}\n{sound(data, [path for path, _, _ in rows])}\n"
    stamp = out / "made_of"
    if stamp.exists() and stamp.read_text() == made_of:
        return digest
    with atomic_path(out / "labels.csv") as temporary:
        temporary.write_text(text.getvalue(), encoding="utf-8")
    with redirect_stdout(io.StringIO()):
        words = ["--csv", str(out / "labels.csv"), "--kind", task.kind, "--metric", task.metric]
        words += ["--root", str(data), "--out", str(out), "--name", task.name, "--force"]
        custom.run(custom.get_parser().parse_args(words))
    with atomic_path(stamp) as temporary:
        temporary.write_text(made_of)
    return digest
