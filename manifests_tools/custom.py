"""Build a probing task from a CSV: `python -m manifests_tools custom`."""

import argparse
import hashlib
import os
import re
import shlex
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn

from manifests_tools.beat_files import beats_within, read_beat_file, require_ascending
from manifests_tools.find import require_folder
from manifests_tools.keys import KEYS, normalise_key
from manifests_tools.labelled import DataSet, Labelled, as_it_is
from manifests_tools.probing import add_common_options, build
from manifests_tools.tables import read_lines, read_named
from music_ssl_fairseq.cli import Parser, new_parser
from music_ssl_fairseq.errors import InputError, warn
from music_ssl_fairseq.probing.spec import (
    KINDS,
    SPLITS,
    ProbingSpec,
    parse_number,
    parse_position,
)
from music_ssl_fairseq.runtime.texts import quoted
from music_ssl_fairseq.runtime.user_command import with_options

COLUMNS = ("path", "label", "split")
OPTIONAL = ("start", "stop", "group", "artist")

_DELIMITERS = ",\t;"
_MISSING = ("nan", "NaN", "<NA>")  # of pandas, written as text
_LIKE_SPLIT = {"split", "splits", "set", "subset", "partition", "fold"}
"""Names of a column, in small letters, after which no split is drawn."""

_DRAWN = ("train", "valid", "train", "test", "train")  # two songs make train and valid
_SPLIT_NAMES = {"validation": "valid", "val": "valid", "dev": "valid", "training": "train"}
_DESCRIPTION = """\
Make a probing task from a CSV. Its first line names the columns:
  path          of the audio file
  label         see --kind
  split         train, valid or test. Without this column, songs are divided 3 : 1 : 1
  start, stop   (optional) the part of the file that counts, in seconds
  group         (optional) the song that a part belongs to; it must stay in one split, and scores
                per file are taken over it. Without it each part stands for itself
  artist        (optional) or album: where songs are divided, each stays in one split
"""
_EXAMPLE = """\
a CSV of genres, of two parts of one song and of another song:
  path,label,split,start,stop,group
  a/1.wav,rock,train,0,30,a-1
  a/1.wav,rock,train,30,60,a-1
  b/2.mp3,jazz,valid,,,

example: python -m manifests_tools custom --csv genres.csv --kind multi-class --root ~/Music
"""


def get_parser() -> Parser:
    parser = new_parser("manifests_tools custom", _DESCRIPTION, _EXAMPLE)
    add = parser.option
    add("--csv FILE", "UTF-8; cells separated by , or ; or tabs", required=True)
    add(
        "--kind",
        "what a label is. multi-class: one class; multi-label: classes; key: such as "
        "`C# minor`; regression: numbers; beats: times in seconds, or the name of a file with "
        "one beat per line (or a .jams file), relative to the CSV",
        required=True,
        choices=tuple(KINDS),
    )
    add("--root DIR", "what the paths are relative to (default: the CSV's folder)")
    add("--name", "name of the task in reports (default: that of the folder --out)")
    add("--separator C", "character between the labels of one cell", default=";", type=_separator)
    add(
        "--classes FILE",
        "class list, one per line: other labels are errors (default: the labels of the CSV)",
    )
    add(
        "--targets A,B",
        "names of the numbers of a regression (default: value, or value 1, value 2, ...)",
    )
    add("--metric", "what chooses on validation (default: the usual one of the kind)")
    add_common_options(parser, "probing/custom")
    return parser


def _separator(text: str) -> str:
    if not text:
        raise argparse.ArgumentTypeError("must be a character")
    return text


def run(a: argparse.Namespace) -> None:
    """Write the folder of the task, and a summary to stdout.

    Raises InputError naming the line of the CSV that is wrong, or as `probing.build`.
    """
    root = os.path.abspath(Path(a.csv).parent if a.root is None else a.root)
    require_folder(root)
    for option, value, kinds in (
        ("--targets", a.targets, ("regression",)),
        ("--classes", a.classes, ("multi-class", "multi-label")),
    ):
        if value and a.kind not in kinds:
            raise InputError(
                f"{option} goes with --kind {' or '.join(kinds)}, not with {a.kind}",
                with_options({option: None}),
            )
    build(_Csv(a, root).data_set, root, a)


def _read_classes(file: Path) -> tuple[str, ...]:
    lines = read_lines(file)
    for number, cells in lines:
        if len(cells) > 1:
            raise InputError(f"{file}, line {number}: {len(cells)} cells, but a line is one class")
    return tuple(sorted(cells[0] for _, cells in lines))


class _Csv:
    """Read and check the lines of a CSV; `a` is the command line."""

    def __init__(self, a: argparse.Namespace, root: str):
        self.a = a
        self.file = Path(a.csv)
        self.root = root
        self.of_kind = KINDS[a.kind]
        self.classes = KEYS if a.kind == "key" else ()
        if a.classes:
            self.classes = _read_classes(Path(a.classes))

    def data_set(self) -> DataSet:
        """Return all that is labelled, with the classes, or names of numbers, that occur."""
        splits = self._read()
        kind = self.of_kind
        labels = {label for items in splits.values() for item in items for label in item.label}
        classes = self.classes
        if (kind.one_class or kind.many_classes) and not classes:
            classes = tuple(sorted(labels))
            if not classes:
                raise InputError(f"{self.file}: no line has a label")
        alike = {frozenset(item.label) for items in splits.values() for item in items}
        if kind.many_classes and all(len(label) < 2 for label in alike):
            self._warn_of_separators(labels)
        if classes and labels and len(alike) == 1:
            raise InputError(
                f"{self.file}: all files have the label {quoted(self.a.separator.join(labels))}, "
                "so there is nothing to tell apart: add files with another"
            )
        task = ProbingSpec(
            self.a.name or os.path.basename(os.path.abspath(self.a.out)),
            self.a.kind,
            self.a.metric or kind.choosing[0],
            classes,
            self._targets(splits["train"]) if kind.has_numbers else (),
            source=str(self.file.absolute()),
        )
        return DataSet(task, splits, beats_within if kind.has_beats else as_it_is)

    def _warn_of_separators(self, labels: set[str]) -> None:
        """Name what looks like several labels in one, where no file has more than one."""
        for label, sign in ((label, sign) for label in sorted(labels) for sign in "|,/+"):
            if sign in label:
                return warn(
                    f"{self.file}: no line has more than one label; if {quoted(label)} is several, "
                    f"give --separator {shlex.quote(sign)} --force"
                )

    def _targets(self, items: list[Labelled]) -> tuple[str, ...]:
        """Return the names of the numbers: as given, or `value 1`, `value 2` and so on."""
        if not items:
            raise InputError(f"{self.file}: no line of the split train")
        number = len(items[0].label)
        names = tuple(f"value {i + 1}" for i in range(number)) if number > 1 else ("value",)
        if self.a.targets:
            names = tuple(self.a.targets.split(","))
        if len(names) != number:
            reason = f"{number} numbers per line, but --targets names {len(names)}"
            raise InputError(f"{self.file}: {reason}")
        return names

    def _read(self) -> dict[str, list[Labelled]]:
        """Return the files of each split: train, valid, and test if the CSV has it."""
        header, lines, delimiter = read_named(
            self.file, _DELIMITERS, quotes=True, strict=True, blanks=True
        )
        drawn = not _LIKE_SPLIT & {name.strip().lower() for name in header}
        needed = COLUMNS[:2] if drawn else COLUMNS
        if not set(needed) <= set(header):
            raise self._wrong_header(header, needed, delimiter.replace("\t", "\\t"))
        used = {*COLUMNS, *OPTIONAL} - (set() if drawn else {"artist"})
        if unused := [name for name in header if name and name not in used]:
            names = ", ".join(map(quoted, unused))
            print(f"{self.file}: columns that are not used: {names}", file=sys.stderr)
        splits: dict[str, list[Labelled]] = {split: [] for split in SPLITS}
        songs: dict[str, list[Labelled]] = {}
        places: dict[tuple[str, object], int] = {}
        width = 0
        for number, cells in lines:
            row = dict(zip(header, cells, strict=False))
            path = row.get("path", "")
            row = {name: cell.strip() for name, cell in row.items()}
            if path != row.get("path", "") and os.path.exists(os.path.join(self.root, path)):
                row["path"] = path  # a file is named so, with blanks at its ends
            item = self._item(row, number)
            place = os.path.normpath(item.name), item.segment
            if places.setdefault(place, number) != number:
                self._refuse(number, f"{item.name} is in line {places[place]} already")
            width = width or len(item.label)
            if self.of_kind.has_numbers and len(item.label) != width:
                self._refuse(number, f"{len(item.label)} numbers, but {width} in the lines above")
            if drawn:
                song = row.get("artist") or row.get("group") or row["path"]
                songs.setdefault(song, []).append(item)
            else:
                splits[self._split(row, number)].append(item)
        if drawn:
            self._draw(songs, splits, "artist" in header)
        if not splits["test"]:
            del splits["test"]
        return splits

    def _draw(
        self, songs: dict[str, list[Labelled]], splits: dict[str, list[Labelled]], by_artist: bool
    ) -> None:
        """Divide songs or artists 3 : 1 : 1, each label alike; the digest of names decides.

        Names count without the folder that all share: absolute paths give the same splits.
        """
        shared = os.path.commonprefix(list(songs))  # noqa: RUF071 (cut to a folder below)
        folder = shared.rfind("/") + 1

        def order(song: str) -> tuple[Any, bytes]:
            name = song[folder:].encode("utf-8", "surrogateescape")
            return songs[song][0].label, hashlib.blake2b(name).digest()

        for place, song in enumerate(sorted(songs, key=order)):
            splits[_DRAWN[place % len(_DRAWN)]] += songs[song]
        what = "artists" if by_artist else "songs"
        advice = ". Those of one album may be in two; a column artist keeps them together"
        print(
            f"{self.file}: no column split, so {what} are divided 3 : 1 : 1 into train, valid and "
            f"test{'' if by_artist else advice}",
            file=sys.stderr,
        )

    def _wrong_header(self, header: list[str], needed: Sequence[str], separator: str) -> InputError:
        lower = [column.lower() for column in header]
        missing = [column for column in needed if column not in header]
        unknown = [column for column in header if column not in (*COLUMNS, *OPTIONAL)]
        found = quoted(",".join(header)) if header else "empty"
        message = (
            f"{self.file}: no column {missing[0]!r}: the first line must name path and label, and "
            f"perhaps split, {', '.join(OPTIONAL)}, and is {found}"
        )
        file = shlex.quote(str(self.file))
        if set(needed) <= set(lower) and all(re.fullmatch(r"[\w ]*", name) for name in lower):
            return InputError(message, f"sed -i '1s/.*/{separator.join(lower)}/' {file}")
        is_file = bool(header) and bool(os.path.splitext(header[0])[1])
        if unknown == header and (is_file or len(header) == len(COLUMNS)):  # lines alone
            names = separator.join(COLUMNS[: len(header)])
            return InputError(message, f"sed -i '1i {names}' {file}")
        if len(missing) == len(unknown) == 1 and re.fullmatch(r"\w+", unknown[0]):
            return InputError(message, f"sed -i '1s/{unknown[0]}/{missing[0]}/' {file}")
        return InputError(message, f"head -n 3 {file}")

    def _item(self, row: dict[str, str], number: int) -> Labelled:
        if not row.get("path"):
            self._refuse(number, "no path")
        label = self._label(row.get("label", ""), number)
        if not label and not self.of_kind.many_classes:
            self._refuse(number, f"no label for {row['path']}; leave the line out")
        segment = self._segment(row, number)
        # Decode as file names: in the locale C these are not the CSV's UTF-8.
        name = os.fsdecode(row["path"].encode())
        group = row.get("group") or None
        if segment is not None and group is None:
            # Otherwise parts of one file would count as one, and may have different labels.
            group = f"{row['path']} {segment[0]:.10g}-{segment[1]:.10g}"
        return Labelled(name, label, segment, group)

    def _label(self, cell: str, number: int) -> tuple[str, ...]:
        one = self.of_kind.one_class
        if not one and cell.startswith(("['", '["')):
            self._refuse(number, f"label {quoted(cell)} is a list of Python; write a;b")
        parts = [cell] if one else [part.strip() for part in cell.split(self.a.separator)]
        labels = tuple(part for part in parts if part)
        try:
            if self.a.kind == "key":
                labels = tuple(normalise_key(label) for label in labels)
            elif self.of_kind.has_numbers:
                labels = tuple(str(parse_number(label)) for label in labels)
            elif self.of_kind.has_beats:
                labels = self._beats(labels)
        except ValueError as error:
            self._refuse(number, str(error))
        for label in labels:
            if self.classes and label not in self.classes:
                self._refuse(number, f"label {quoted(label)} is not in the class list")
            if not self.classes and label in _MISSING:
                self._refuse(
                    number,
                    f"label {quoted(label)} stands for a missing value; leave the line out, or "
                    "name the classes with --classes",
                )
        return labels

    def _beats(self, labels: tuple[str, ...]) -> tuple[str, ...]:
        if len(labels) == 1 and (self.file.parent / labels[0]).is_file():
            return read_beat_file(self.file.parent / labels[0])
        try:
            times = [parse_number(label.partition("/")[0]) for label in labels]
            for label in labels:
                parse_position(label.partition("/")[2] or "0")
        except ValueError as error:
            raise ValueError(f"{error}: neither times nor the name of a file") from None
        require_ascending(times)
        return labels

    def _segment(self, row: dict[str, str], number: int) -> tuple[float, float] | None:
        cells = [row.get("start", ""), row.get("stop", "")]
        if not any(cells):
            return None
        with suppress(ValueError):
            start, stop = (parse_number(cell) for cell in cells)
            if 0 <= start < stop:
                return start, stop
        start_cell, stop_cell = map(quoted, cells)
        self._refuse(number, f"start {start_cell} and stop {stop_cell} are no seconds, as 12.5 is")

    def _split(self, row: dict[str, str], number: int) -> str:
        name = row.get("split", "").lower()
        split = _SPLIT_NAMES.get(name, name)
        if split not in SPLITS:
            self._refuse(number, f"split {quoted(name)} is none of {', '.join(SPLITS)}")
        return split

    def _refuse(self, number: int, reason: str) -> NoReturn:
        raise InputError(f"{self.file}, line {number}: {reason}")
