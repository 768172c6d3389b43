"""Find files of equal bytes, which make figures mislead."""

import os
import stat
from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Iterable
from contextlib import suppress
from hashlib import blake2b, file_digest

_MIDDLE_BYTES = 1 << 16  # tell most files of equal size apart


def find_copies(paths: Iterable[str], others: Iterable[str] | None = None) -> dict[str, str]:
    """Find files that equal another file byte by byte; only files of equal size are read.

    Files that cannot be read have no copies. With `others`, originals are looked for among these.
    A path that is given twice, or in both, is a copy of itself.

    Returns path -> the first of `others`, or of the paths before it, that it is a copy of.
    """
    originals, paths = list(others or ()), list(paths)
    others_set = set(originals)
    counts = Counter(paths)
    of_itself = others_set if others is not None else {path for path in paths if counts[path] > 1}
    groups = [list(dict.fromkeys([*originals, *paths]))]  # of equal files, as far as is known
    for key in (_size, _middle, _whole_file):
        parts = [part for group in groups for part in _divide(group, key)]
        groups = [part for part in parts if len(part) > 1]
        if others is not None:  # which come first in each group
            groups = [g for g in groups if g[0] in others_set and g[-1] not in others_set]
    copies = {path: group[0] for group in groups for path in group[1:] if path not in others_set}
    return {path: path for path in paths if path in of_itself} | copies


def _divide(group: list[str], key: Callable[[str], Hashable]) -> Iterable[list[str]]:
    parts: dict[Hashable, list[str]] = defaultdict(list)
    for path in group:
        with suppress(OSError, ValueError):  # a name may hold a NUL byte
            parts[key(path)].append(path)
    return parts.values()


def _size(path: str) -> int:
    # Reading from another kind of file may never end.
    status = os.stat(path)
    if not stat.S_ISREG(status.st_mode):
        raise OSError(f"{path}: not a regular file")
    return status.st_size


def _middle(path: str) -> bytes:
    with open(path, "rb") as file:
        file.seek(max(0, os.path.getsize(path) // 2 - _MIDDLE_BYTES // 2))
        return blake2b(file.read(_MIDDLE_BYTES)).digest()


def _whole_file(path: str) -> bytes:
    with open(path, "rb") as file:
        return file_digest(file, "blake2b").digest()
