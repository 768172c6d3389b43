"""What a run that is not finished has done so far, in a folder beside its results.

Each block of tracks is a file that is there whole or not at all. Processes that share a run see
each other's blocks; what one is working on is locked, so that no other does the same. The system
lets go of a killed process's locks.
"""

import contextlib
import shutil
import sys
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np

from music_ssl_fairseq.errors import InputError
from music_ssl_fairseq.runtime.files import atomic_path, lock
from music_ssl_fairseq.runtime.npy import UNREADABLE

_DAMAGED: tuple[type[Exception], ...] = (
    *(zipfile.BadZipFile, zlib.error, NotImplementedError, AttributeError),
    *UNREADABLE,
)
"""What reading a damaged .npz raises."""


class Block(NamedTuple):
    """What a block of tracks gave.

    Attributes:
        values: `[n, ...]` of all its tracks, one after the other.
        lengths: `[tracks]` int64 rows of each.
        unreadable: places of those tracks within the block that could not be read.
    """

    values: np.ndarray
    lengths: np.ndarray
    unreadable: np.ndarray


@dataclass(frozen=True)
class WorkFolder:
    """Files of one recipe's unfinished work."""

    path: Path

    def block(self, stage: str, number: int) -> Path:
        """Where a block of a stage is, once it is done."""
        return self.path / f"{stage}-{number:05d}.npz"

    def save_block(self, stage: str, number: int, block: Block) -> None:
        self.save_arrays(self.block(stage, number), **block._asdict())

    def load_block(self, stage: str, number: int) -> Block:
        """A block that is done.

        Raises:
            InputError: if it is damaged, and now removed.
        """
        file = self.block(stage, number)
        found = self.load_arrays(file)
        if found is None or set(found) != set(Block._fields):
            file.unlink(missing_ok=True)
            raise InputError(f"{file}: damaged, now removed: the same command makes it again")
        return Block(**found)

    def save_arrays(self, file: Path, **arrays: Any) -> None:
        """Write a file of several arrays, whole or not at all."""
        with atomic_path(file) as temporary:
            np.savez(temporary, **arrays)

    def load_arrays(self, file: Path) -> dict[str, np.ndarray] | None:
        """What `save_arrays` wrote; None if there is no such file, or a damaged one: it is removed.

        Every array in it has a checksum, which is compared.
        """
        try:
            with np.load(file, allow_pickle=False) as arrays:
                return dict(arrays)
        except FileNotFoundError:
            return None
        except _DAMAGED:
            print(f"{file}: damaged; what was in it is computed again", file=sys.stderr)
            file.unlink(missing_ok=True)
            return None

    def load_lengths(self, stage: str, number: int) -> np.ndarray:
        """`[tracks]` rows of each track of a block, without reading the rows."""
        try:
            with np.load(self.block(stage, number), allow_pickle=False) as arrays:
                return arrays["lengths"]
        except _DAMAGED:
            return self.load_block(stage, number).lengths

    def remove_damaged(self, stage: str, numbers: Iterable[int]) -> None:
        """Of these blocks, remove those that are there and not whole."""
        for number in numbers:
            found = self.load_arrays(self.block(stage, number))
            if found is not None and set(found) != set(Block._fields):
                self.block(stage, number).unlink(missing_ok=True)

    def missing(self, stage: str, count: int) -> list[int]:
        """Blocks of a stage that are not there yet."""
        return [number for number in range(count) if not self.block(stage, number).exists()]

    def remove(self) -> None:
        """Remove all there is."""
        shutil.rmtree(self.path, ignore_errors=True)

    @contextlib.contextmanager
    def locked(self, name: str) -> Iterator[None]:
        """Hold a lock, for which other processes of this run wait."""
        with self._open_lock(name) as handle:
            lock(handle, wait=True)
            yield

    def claim(self, name: str) -> IO[bytes] | None:
        """Take a lock until the handle is closed; None if another process has it."""
        handle = self._open_lock(name)
        if lock(handle, wait=False):
            return handle
        handle.close()
        return None

    def release(self, name: str, handle: IO[bytes]) -> None:
        """Give back what `claim` has given."""
        (self.path / f"{name}.lock").unlink(missing_ok=True)
        handle.close()

    def _open_lock(self, name: str) -> IO[bytes]:
        self.path.mkdir(parents=True, exist_ok=True)
        return (self.path / f"{name}.lock").open("wb")
