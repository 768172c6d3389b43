"""Build the folder of a probing task: options, audio, missing files and the summary."""

import argparse
import os
import shlex
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import combinations
from pathlib import Path
from typing import Any

from hydra_plugins._music_ssl_fairseq_command import shell_line
from manifests_tools.examine import ExaminedTrack, add_reading_options, examine_tracks
from manifests_tools.find import require_folder
from manifests_tools.labelled import DataSet, Labelled, shorten
from music_ssl_fairseq.cli import Parser, real_number
from music_ssl_fairseq.data.copies import find_copies
from music_ssl_fairseq.data.left_out import REPORT, LeftOut, by_name, count_kinds, write_left_out
from music_ssl_fairseq.errors import InputError, one_line, warn
from music_ssl_fairseq.frames import SAMPLE_RATE, amount
from music_ssl_fairseq.probing.spec import FILE, SPLITS, ProbingSpec, parse_number, write_spec
from music_ssl_fairseq.probing.writer import Example, remove_split, write_split
from music_ssl_fairseq.runtime.files import require_writable
from music_ssl_fairseq.runtime.user_command import beside, newest_run, with_option

MIN_SECONDS = 0.1
"""Shorter files have too few frames."""

Splits = dict[str, list[Example]]


@dataclass(frozen=True)
class ProbingBuilder:
    """`python -m manifests_tools NAME`: manifests, labels and task.json of one task."""

    name: str  # name of the task
    description: str  # for `--help`: the data set, and where users get it
    root_help: str  # help of `--root`
    # Takes root and the builder's own options; returns labels or raises InputError
    read: Callable[..., DataSet]
    # The builder's own: form -> other arguments of `Parser.option`
    options: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    def get_parser(self) -> Parser:
        parser = Parser(
            prog=f"python -m manifests_tools {self.name}",
            description=f"{self.description} Writes {{train,valid,test}}.tsv and .labels and "
            f"{FILE} to OUT; labelled files without usable audio are counted, and named in "
            f"OUT/{REPORT}.",
            epilog=f"example: python -m manifests_tools {self.name} --root ~/data",
        )
        parser.option("--root DIR", self.root_help, required=True)
        for form, arguments in self.options.items():
            parser.option(form, **arguments)
        add_common_options(parser, f"probing/{self.name}")
        return parser

    def run(self, a: argparse.Namespace) -> None:
        """Write the folder, and a summary to stdout.

        Raises InputError if audio or metadata are not where they should be, too much is missing, a
        file is in two splits, or the output exists.
        """
        root = os.path.abspath(a.root)
        require_folder(root)
        options = (form.split()[0] for form in self.options)
        names = [option.removeprefix("--").replace("-", "_") for option in options]
        build(partial(self.read, root, **{name: getattr(a, name) for name in names}), root, a)


def add_common_options(parser: Parser, out: str) -> None:
    """Add the options of every builder of a probing task, except `--root`."""
    add = parser.option
    add("--out DIR", f"where to write (default: {out})", default=out)
    add(
        "--max-missing X",
        "share of a split's labelled files that may be missing or damaged, from 0 to 1; more "
        "is an error",
        default=0.01,
        type=real_number(0, 1),
    )
    add_reading_options(parser)
    add("--force", f"replace an existing {FILE} and what belongs to it", action="store_true")


def build(read: Callable[[], DataSet], root: str, a: argparse.Namespace) -> None:
    """Examine the audio of a data set, whose labels `read()` returns; write its folder.

    `a` has the options of `add_common_options`.
    """
    folder = Path(a.out)
    if (folder / FILE).exists() and not a.force:
        raise InputError(
            f"{folder}: {FILE} exists already; --force would replace it; to write beside it",
            with_option("--out", beside(folder)),
        )
    require_writable(folder, "--out")
    data = read()
    data.refuse_unusable(root)
    names = list(dict.fromkeys(name for split in data.splits for name in data.names(split)))
    tracks, left_out = examine_tracks(root, names, MIN_SECONDS, a.thorough, a.workers)
    _warn_of_silence_and_copies(root, data, tracks)
    unusable = {item.name: item for item in left_out}
    write_left_out(folder / REPORT, by_name(left_out))
    for split in data.splits:
        labelled = data.names(split)
        missing = [unusable[name] for name in labelled if name in unusable]
        if missing and len(missing) > a.max_missing * len(labelled):
            raise InputError(
                f"{split}: {len(missing)} of {len(labelled)} labelled files cannot be used "
                f"({100 * len(missing) / len(labelled):.1f} %), first {one_line(missing[0].name)}: "
                f"{missing[0].reason}. Names are relative to --root, which is {root}. "
                f"--max-missing allows a larger share than {a.max_missing:g}. To list all, run",
                f"cat {shlex.quote(str(folder / REPORT))}",
            )
    examples, empty = _examples(data, {track.name: track for track in tracks})
    write_left_out(folder / REPORT, by_name([*left_out, *empty]))
    counts = {split: len(lines) for split, lines in examples.items()}
    task = replace(data.task, counts=counts, missing=len(left_out))
    (folder / FILE).unlink(missing_ok=True)  # until all splits are of one data set
    for split in SPLITS:
        if split in examples:
            write_split(folder, split, root, examples[split])
        else:
            remove_split(folder, split)
    write_spec(folder, task)
    _summarise(folder, task, examples, [*left_out, *empty], len(names))


def _warn_of_silence_and_copies(root: str, data: DataSet, tracks: list[ExaminedTrack]) -> None:
    """Warn of silent files and copies; the data set decides on its files, so they stay."""
    if silent := [track.name for track in tracks if track.silent]:
        warn(f"{len(silent)} labelled files are silent: {shorten(silent)}")
    paths = {s: [os.path.join(root, name) for name in data.names(s)] for s in data.splits}
    for first, second in combinations(paths, 2):
        if copies := find_copies(paths[second], paths[first]):
            names = [os.path.relpath(path, root) for path in copies]
            warn(
                f"{len(names)} files of {second} are copies, byte for byte, of files of {first}: "
                f"{shorten(names)}"
            )


def _examples(data: DataSet, tracks: dict[str, ExaminedTrack]) -> tuple[Splits, list[LeftOut]]:
    """Return the examples of each split, and the files that have none."""
    examples: Splits = {}
    empty = []
    for split, items in data.splits.items():
        examples[split] = []
        for item in items:
            if item.name in tracks:
                lines = data.to_examples(item, tracks[item.name])
                examples[split] += lines
                if not lines:
                    empty.append(LeftOut(item.name, "too short: holds nothing that is labelled"))
        if data.task.of_kind.has_beats:
            _name_late_beats(split, [i for i in items if i.name in tracks], examples[split])
        if not examples[split]:
            raise InputError(f"{split}: no file is long enough to be used")
    return examples, empty


def _name_late_beats(split: str, items: list[Labelled], used: list[Example]) -> None:
    """Warn of beats after the end of their file, which are left out; if most are, refuse."""
    left = {(example.name, example.segment): len(example.label) for example in used}
    late: Counter[str] = Counter()
    for item in items:  # of which a file may have several, with a segment each
        late[item.name] += len(item.label) - left.get((item.name, item.segment), 0)
    late = +late  # without files of which no beat is late
    about = f"{split}: {late.total()} beats lie after the end of their files: {shorten(late)}"
    if 2 * late.total() >= sum(left.values()):
        raise InputError(f"{about}; are these seconds?")
    if late:
        warn(f"{about}; they are left out")


def _summarise(
    folder: Path, task: ProbingSpec, examples: Splits, left_out: list[LeftOut], labelled: int
) -> None:
    for split, lines in examples.items():
        beside = ""
        if (published := task.published.get(split)) is not None:
            off = f": {len(lines) - published:+d}" if len(lines) != published else ""
            beside = f" (published {published}{off})"
        parts = (line.segment or (0, line.num_samples / SAMPLE_RATE) for line in lines)
        duration = amount(sum(stop - start for start, stop in parts) / 3600)
        print(f"{split}: {len(lines)} {task.counted}{beside}, {duration}")
    if "test" not in examples:
        warn("no test split, so there will be no test figure")
    if task.classes:
        print(f"classes: {len(task.classes)}")
        _name_absent(task, examples)
        _name_alike(task.classes)
    if task.skipped:
        print(f"skipped, known to be damaged or double: {shorten(task.skipped)}")
    listed = f", listed in {folder / REPORT}" if left_out else ""
    print(f"left out of {labelled} labelled files: {count_kinds(left_out)}{listed}")
    where = f"{shlex.quote(newest_run() or 'mfcc')} --task {shlex.quote(str(folder))}"
    split = "" if "test" in examples else " --split valid"
    print(f"next: python -m music_ssl_fairseq probe --upstream {shell_line(where)}{split}")


def _name_alike(classes: Sequence[str]) -> None:
    """Warn of classes that differ in case, form of accents, or digits of the same number."""
    alike: dict[object, list[str]] = defaultdict(list)
    for name in classes:
        alike[_comparable_name(name)].append(name)
    pairs = [" and ".join(map(repr, names)) for names in alike.values() if len(names) > 1]
    if pairs:
        warn(f"classes that are told apart: {shorten(pairs)}")


def _comparable_name(name: str) -> object:
    try:
        return parse_number(name)
    except ValueError:
        return unicodedata.normalize("NFKC", name).casefold()


def _name_absent(task: ProbingSpec, examples: Splits) -> None:
    for split, lines in examples.items():
        present = {label for line in lines for label in line.label}
        absent = [name for name in task.classes if name not in present]
        if absent:
            warn(f"{split} has no example of: {shorten(absent)}")
