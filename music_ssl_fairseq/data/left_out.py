"""Report the tracks that a command leaves out: `left_out.tsv` and counts per reason."""

import os
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from music_ssl_fairseq.runtime.files import atomic_path

REPORT = "left_out.tsv"


@dataclass(frozen=True)
class LeftOut:
    """A file that cannot be used; `reason` is its kind, `kind: details` or `kind (details)`."""

    name: str
    reason: str


def by_name(left_out: Iterable[LeftOut]) -> list[LeftOut]:
    """Sort by the bytes of the names."""
    return sorted(left_out, key=lambda item: os.fsencode(item.name))


def kind_of(reason: str) -> str:
    """Return a reason without what differs from file to file."""
    return reason.partition(":")[0].partition(" (")[0]


def write_left_out(file: str | os.PathLike, left_out: Iterable[LeftOut]) -> None:
    """Write one line `name<TAB>reason` per file, atomically.

    Tabs and line breaks in a name are written as `\\t`, `\\n` and `\\r`; bytes that are not UTF-8
    stay as in the file system.
    """
    with atomic_path(file) as temporary, temporary.open("wb") as handle:
        for item in left_out:
            handle.write(b"%s\t%s\n" % (_one_line(item.name), _one_line(item.reason)))


def _one_line(text: str) -> bytes:
    return os.fsencode(text.replace("\t", "\\t").replace("\n", "\\n").replace("\r", "\\r"))


def count_kinds(left_out: Iterable[LeftOut]) -> str:
    """Return for example `3 (too short 2, the file is empty 1)`, the most frequent first."""
    kinds = Counter(kind_of(item.reason) for item in left_out)
    if not kinds:
        return "none"
    parts = [f"{kind} {count}" for kind, count in sorted(kinds.items(), key=lambda x: (-x[1], x))]
    return f"{sum(kinds.values())} ({', '.join(parts)})"
