"""Specification of a probing task: `task.json` in the folder of its manifests and labels.

`python -m manifests_tools NAME` writes the folder, and the task `music_probing` reads it. Beside
`task.json` it holds the files that `labels` describes, for each split of `SPLITS`.
"""

import math
import os
import shlex
from collections import Counter
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, NamedTuple

from music_ssl_fairseq.errors import InputError
from music_ssl_fairseq.runtime.files import write_json
from music_ssl_fairseq.runtime.texts import quoted, read_json
from music_ssl_fairseq.runtime.user_command import similar, with_other, with_path

SPLITS = ("train", "valid", "test")

FILE = "task.json"


class Metric(NamedTuple):
    """A metric that a scored probe reports."""

    name: str
    selects: bool = True  # whether it may decide on validation
    shown: bool = True  # whether it is a column of the report's tables


@dataclass(frozen=True)
class Kind:
    """A kind of task: its metrics, and exactly one of four forms of labels."""

    metrics: tuple[Metric, ...]
    one_class: bool = False  # a label is one class, and a song has one
    many_classes: bool = False  # a label is any number of classes
    has_numbers: bool = False  # a label is a number per target
    has_beats: bool = False  # a label is a list of times, and a head answers for each frame

    @property
    def choosing(self) -> tuple[str, ...]:
        """Metrics that may decide on validation, the usual one first."""
        return tuple(m.name for m in self.metrics if m.selects)

    @property
    def reported(self) -> tuple[str, ...]:
        """All metrics; with numbers, there is also `r2_NAME` of each target."""
        return tuple(m.name for m in self.metrics)

    @property
    def shown(self) -> tuple[str, ...]:
        """Metrics in tables; those of groups only where files and songs differ."""
        return tuple(m.name for m in self.metrics if m.shown)


KINDS = {
    "multi-class": Kind((Metric("accuracy"), Metric("group_accuracy")), one_class=True),
    "multi-label": Kind(
        (Metric("macro_roc_auc"), Metric("macro_average_precision")), many_classes=True
    ),
    "key": Kind(
        (
            Metric("weighted_key_score"),
            Metric("group_weighted_key_score", selects=False),
            Metric("accuracy", shown=False),
            Metric("group_accuracy", selects=False, shown=False),
        ),
        one_class=True,
    ),
    "regression": Kind((Metric("r2", shown=False),), has_numbers=True),  # shown for each target
    "beats": Kind(
        (
            Metric("f_measure"),
            Metric("f_measure_per_file", selects=False, shown=False),
            Metric("f_measure_20ms", selects=False, shown=False),
            Metric("f_measure_per_file_20ms", selects=False, shown=False),
        ),
        has_beats=True,
    ),
}
"""Name in `task.json` -> kind."""

_MAX_CHARACTERS = 1000  # characters of a task, class or target


@dataclass(frozen=True)
class ProbingSpec:
    """The contents of `task.json`."""

    name: str  # for example `gtzan-genre`
    kind: str  # a key of `KINDS`
    metric: str  # decides on validation (for regression, its mean over the targets)
    # Sorted names in the order of the outputs; empty for regression and beats
    classes: tuple[str, ...] = ()
    targets: tuple[str, ...] = ()  # names of a regression's numbers; empty otherwise
    counts: dict[str, int] = field(default_factory=dict)  # split -> number of manifest rows
    # Split -> published number of `counted`, or None
    published: dict[str, int | None] = field(default_factory=dict)
    counted: str = "files"  # unit of the published counts, for example `songs` or `clips`
    missing: int = 0  # number of labelled files without audio
    skipped: tuple[str, ...] = ()  # names of files left out because they are known to be damaged
    source: str = ""  # origin of audio and labels

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise InputError(f"unknown kind of task {self.kind!r}: one of {', '.join(KINDS)}")
        kind = self.of_kind
        if self.metric not in kind.choosing:
            raise InputError(
                f"metric {self.metric!r} does not fit the kind {self.kind}: "
                f"one of {', '.join(kind.choosing)}",
                with_other("--metric", kind.choosing[0]),
            )
        wanted = "targets" if kind.has_numbers else None if kind.has_beats else "classes"
        for name in ("classes", "targets"):
            values = getattr(self, name)
            if bool(values) != (name == wanted):
                state = "needs" if name == wanted else "has no"
                raise InputError(f"a task of kind {self.kind} {state} `{name}`")
            if name == "classes" and kind.one_class and len(values) < 2:
                raise InputError(
                    f"{self.source or self.name}: a single class, {quoted(values[0])}, is nothing "
                    "to tell apart"
                )
            repeated = sorted(value for value, count in Counter(values).items() if count > 1)
            if repeated:
                raise InputError(f"`{name}` lists {quoted(repeated[0])} twice")
        if "/" in self.name or self.name in (".", ".."):
            raise InputError(f"{quoted(self.name)}: no name for the folder of a task's results")
        for text in (self.name, *self.classes, *self.targets):
            if not 0 < len(text) <= _MAX_CHARACTERS:
                raise InputError(f"{quoted(text)}: a name has 1 to {_MAX_CHARACTERS} characters")
            if any(character in text for character in "\t\n\r\0"):
                raise InputError(f"{quoted(text)}: a tab or line break, which no name can hold")

    @property
    def of_kind(self) -> Kind:
        """The task's kind."""
        return KINDS[self.kind]

    @property
    def num_outputs(self) -> int:
        """Outputs of a head: classes, targets, or 1 (the logit of a beat in a frame)."""
        return len(self.classes) or len(self.targets) or 1


def builder_command(folder: str | os.PathLike) -> str:
    """Return the command that makes a task's folder, for an error message."""
    where = shlex.quote(str(folder))
    return f"`python -m manifests_tools NAME --root AUDIO_DIR --out {where}`"


def read_spec(folder: str | os.PathLike) -> ProbingSpec:
    """Read `task.json` of a folder.

    Raises InputError if it is missing, not JSON, or describes no task that can be probed.
    """
    file = Path(folder, FILE)
    if Path(folder).suffix in (".csv", ".tsv"):
        to = shlex.join(["--csv", str(folder), "--out", f"probing/{Path(folder).stem}"])
        raise InputError(
            f"{folder}: a table, not the folder of a task, which this makes of it",
            f"python -m manifests_tools custom --kind multi-class {to}",
        )
    if Path(folder).name == FILE:
        above = os.path.dirname(folder) or os.curdir
        raise InputError(
            f"{folder}: a file; give the folder that it is in", with_path(folder, above)
        )
    if not file.exists():
        near = similar(folder)
        if not Path(folder).exists() and Path(near, FILE).exists():
            raise InputError(f"{folder}: no such task", with_path(folder, near))
        raise InputError(
            f"{file}: no such file; `python -m manifests_tools custom` writes it for your own "
            "labels, and other builders write it for data sets; to list all, run",
            "python -m manifests_tools --help",
        )
    contents = read_json(file, f"make it again with {builder_command(folder)}")
    try:
        return _task(contents)
    except InputError as error:
        raise InputError(f"{file}: {error}") from None


def write_spec(folder: str | os.PathLike, task: ProbingSpec) -> None:
    """Write `task.json` of a folder, atomically."""
    write_json(Path(folder, FILE), asdict(task))


def _task(contents: Any) -> ProbingSpec:
    if not isinstance(contents, dict):
        raise InputError("is not an object with name, kind and metric")
    known = {entry.name for entry in fields(ProbingSpec)}
    values = {key: value for key, value in contents.items() if key in known}
    for key in ("name", "kind", "metric"):
        if not isinstance(values.get(key), str):
            raise InputError(f"`{key}` is missing, or is not a text")
    for key in ("classes", "targets", "skipped"):
        listed = values.get(key) or []
        if not isinstance(listed, list) or not all(isinstance(item, str) for item in listed):
            raise InputError(f"`{key}` is not a list of texts")
        values[key] = tuple(listed)
    for key in ("counts", "published"):
        numbers = values.setdefault(key, {})
        if not isinstance(numbers, dict) or not all(map(_is_count, numbers.values())):
            raise InputError(f"`{key}` does not give a number for each split")
    if not _is_count(values.get("missing", 0)):
        raise InputError("`missing` is not a number of files")
    for key in ("counted", "source"):
        if not isinstance(values.get(key, ""), str):
            raise InputError(f"`{key}` is not a text")
    return ProbingSpec(**values)


def _is_count(value: Any) -> bool:
    return value is None or (type(value) is int and 0 <= value < 2**53)


def parse_number(text: str) -> float:
    """Parse a finite number.

    Raises ValueError if `text` is not one; Python's `1_000` is not.
    """
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not math.isfinite(number) or isinstance(text, bool) or "_" in str(text):
        raise ValueError(f"not a finite number: {quoted(str(text))}")
    return number


def parse_position(text: str) -> int:
    """Parse a position in the bar, from 1; 0 stands for none.

    Raises ValueError if `text` is not one.
    """
    if not (text.isascii() and text.isdigit() and len(text) < 6):
        raise ValueError(f"{quoted(text)} is not a position in the bar")
    return int(text)
