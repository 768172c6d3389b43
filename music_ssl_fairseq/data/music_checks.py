"""Find music that makes figures mislead: files of equal bytes, and little validation."""

import os
import stat
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable
from contextlib import suppress
from hashlib import blake2b, file_digest

from music_ssl_fairseq.audio import parse_member
from music_ssl_fairseq.data.manifest import Manifest
from music_ssl_fairseq.errors import one_line
from music_ssl_fairseq.frames import hours

_MIDDLE_BYTES = 1 << 16  # tell most files of equal size apart


def find_copies(paths: Iterable[str], others: Iterable[str] | None = None) -> dict[str, str]:
    """Find files that equal another file byte by byte; only files of equal size are read.

    Files that cannot be read have no copies. With `others`, originals are looked for among these.

    Returns:
        Path -> the first of `others`, or of the paths before it, that it is a copy of.
    """
    originals = list(others or ())
    among = set(originals)
    groups = [list(dict.fromkeys([*originals, *paths]))]
    for key in (_size, _middle, _whole_file):
        parts = [part for group in groups for part in _divide(group, key)]
        if others is not None:
            groups = [part for part in parts if part[0] in among and part[-1] not in among]
        else:
            groups = [part for part in parts if len(part) > 1]
    return {path: group[0] for group in groups for path in group[1:] if path not in among}


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


MIN_MINUTES = 10


def concerns(valid: Manifest) -> list[str]:
    """Return one sentence per reason to doubt a validation split's figures."""
    found = []
    minutes = 60 * hours(valid.num_samples)
    if minutes < MIN_MINUTES:
        found.append(
            f"{valid.file}: holds {minutes:.1f} minutes of music; with less than {MIN_MINUTES}, "
            "validation figures vary by chance: add music, or give pretrain a larger --valid-share"
        )
    folder = os.path.dirname(valid.name(0))
    in_shards = parse_member(valid.name(0)) is not None  # which tell nothing of folders
    if not in_shards and all(
        os.path.dirname(valid.name(i)) == folder for i in range(1, len(valid))
    ):
        found.append(
            f"{valid.file}: holds a single folder ({one_line(folder) or 'the root'}): for music "
            "of more, give pretrain a larger --valid-share or another --group-by"
        )
    return found
