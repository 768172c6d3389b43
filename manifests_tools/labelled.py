"""Describe the labelled files of a data set, before their audio is read."""

import os
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from manifests_tools.examine import ExaminedTrack
from music_ssl_fairseq.audio import EXTENSIONS
from music_ssl_fairseq.errors import InputError, one_line
from music_ssl_fairseq.frames import LENGTH_TOLERANCE, SAMPLE_RATE
from music_ssl_fairseq.probing.spec import ProbingSpec
from music_ssl_fairseq.probing.writer import Example, refuse_shared

_MIN_SEGMENT_SECONDS = 0.025  # one frame
_MAX_NAMES = 5  # names in a message


@dataclass(frozen=True)
class Labelled:
    """A labelled file, or a segment of one; see `Example` for the fields."""

    name: str
    label: tuple[str, ...]
    segment: tuple[float, float] | None = None
    group: str | None = None


def as_it_is(item: Labelled, track: ExaminedTrack) -> list[Example]:
    """Return the one example of a labelled file or segment.

    Raises InputError if the segment is not within the file, or too short.
    """
    seconds = track.num_samples / SAMPLE_RATE
    start, stop = item.segment or (0.0, seconds)
    part = f"{one_line(item.name)}: the part from {start:g} to {stop:g} s"
    if stop > seconds + LENGTH_TOLERANCE:
        raise InputError(
            f"{part} is not within the file, which has {seconds:.2f} s; are these seconds?"
        )
    if item.segment and min(stop, seconds) - start < _MIN_SEGMENT_SECONDS:
        raise InputError(f"{part} is shorter than one frame ({_MIN_SEGMENT_SECONDS:g} s)")
    return [Example(item.name, track.num_samples, item.label, item.segment, item.group)]


@dataclass(frozen=True)
class DataSet:
    """All labelled files of a task, by split."""

    task: ProbingSpec  # contents of `task.json`; counts are filled in later
    splits: dict[str, list[Labelled]]  # train, valid and perhaps test
    # Returns a file's examples, once its length is known; it may have none
    to_examples: Callable[[Labelled, ExaminedTrack], list[Example]] = field(default=as_it_is)

    def names(self, split: str) -> list[str]:
        """Return the files of a split, each once."""
        return list(dict.fromkeys(item.name for item in self.splits[split]))

    def refuse_unusable(self, root: str) -> None:
        """Refuse labels that cannot be used, before any audio is read.

        Raises InputError if a split has no file or no label, if a label is not in the class
        list or cannot be written in one line, or if a group has two classes. Files and groups may
        be in one split alone, and files and segments be listed once.
        """
        classes = set(self.task.classes)
        files: dict[str, str] = {}
        groups: dict[str, str] = {}
        labels: dict[str, tuple[str, ...]] = {}
        for split, items in self.splits.items():
            if not items:
                raise InputError(
                    f"{self.task.source or root}: no labelled file for the split {split}; training "
                    "and choosing a probe need train and valid"
                )
            if not any(item.label for item in items):
                raise InputError(
                    f"{root}: not one of the {len(items)} files of {split} has a label"
                )
            for item in items:
                self._refuse_label(item, classes)
                if item.group is not None and self.task.of_kind.one_class:
                    known = labels.setdefault(item.group, item.label)
                    if known != item.label:
                        raise InputError(
                            f"group {item.group}: has parts labelled {known[0]} and "
                            f"{item.label[0]}, but its score is one; is it an artist or album?"
                        )
            paths = [os.path.normpath(os.path.join(root, item.name)) for item in items]
            refuse_shared(files, split, set(paths), "")
            places = Counter(zip(paths, (item.segment for item in items), strict=True))
            (path, _), times = places.most_common(1)[0]
            if times > 1:
                raise InputError(f"{path}: listed {times} times in {split}; leave one of the lines")
            named = {item.group for item in items if item.group is not None}
            refuse_shared(groups, split, named, "group ")

    def _refuse_label(self, item: Labelled, classes: set[str]) -> None:
        for text in (item.name, *item.label, item.group or ""):
            if any(character in text for character in "\t\n\r"):
                raise InputError(f"{text!r}: a tab or line break, which no line can hold")
        unknown = [label for label in item.label if classes and label not in classes]
        if unknown:
            raise InputError(
                f"{one_line(item.name)}: label {unknown[0]!r} is not one of the {len(classes)} "
                f"classes: {shorten(self.task.classes)}"
            )


def locate(root: str, *candidates: str) -> str:
    """Return the first of `candidates` (relative to `root`) that exists.

    If none does, the suffixes of other audio formats are tried, for converted copies of a data set.
    If nothing is found, the first candidate is returned, and will be reported as missing.
    """
    for name in candidates:
        if os.path.exists(os.path.join(root, name)):
            return name
    for name in candidates:
        stem = os.path.splitext(name)[0]
        if not os.path.isdir(os.path.dirname(os.path.join(root, name))):
            continue  # spares a look per extension
        for extension in (*EXTENSIONS, *map(str.upper, EXTENSIONS)):
            if os.path.exists(os.path.join(root, stem + extension)):
                return stem + extension
    return candidates[0]


def shorten(names: Iterable[str]) -> str:
    """Join names, as in `a, b, c, d, e, ... (12 in all)`."""
    names = [one_line(name) for name in names]
    more = f", ... ({len(names)} in all)" if len(names) > _MAX_NAMES else ""
    return ", ".join(names[:_MAX_NAMES]) + more
