"""Keep the results of an unfinished run in a folder beside its target.

Each block of tracks is one file, written atomically. Processes that share a run see each other's
blocks, and lock the one that they are doing. The system releases a killed process's locks.
"""

import contextlib
import shutil
import sys
import zipfile
import zlib
from collections import deque
from collections.abc import Callable, Iterator, Sequence
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
"""Errors of reading a damaged .npz."""


Held = deque[tuple[int, Callable[[], None]]]
"""Blocks that this process is doing, in their order, and what releases each."""


class Block(NamedTuple):
    """The results of a block of tracks."""

    values: np.ndarray  # `[n, ...]` of all its tracks, one after the other
    lengths: np.ndarray  # `[tracks]` int64, how many of `values` each track has
    unreadable: np.ndarray  # int64 places within the block of tracks that cannot be read
    source: np.ndarray = np.array("")  # text that differs once its tracks are others, if known


@dataclass(frozen=True)
class CheckpointDir:
    """Files of one unfinished run."""

    path: Path

    def block(self, name: str, number: int) -> Path:
        """Return the file of a block, which exists once the block is done."""
        return self.path / f"{name}-{number:05d}.npz"

    def save_block(self, name: str, number: int, block: Block) -> None:
        """Write a block atomically."""
        self.save_arrays(self.block(name, number), **block._asdict())

    def load_block(self, name: str, number: int) -> Block:
        """Read a block that is done; InputError if it is damaged, and now removed."""
        file = self.block(name, number)
        found = self.load_arrays(file)
        if found is None or set(found) != set(Block._fields):
            file.unlink(missing_ok=True)
            raise InputError(f"{file}: damaged, now removed: the same command makes it again")
        return Block(**found)

    def save_arrays(self, file: Path, **arrays: Any) -> None:
        """Write a file of several arrays atomically."""
        with atomic_path(file) as temporary:
            np.savez(temporary, **arrays)

    def load_arrays(self, file: Path) -> dict[str, Any] | None:
        """Read what `save_arrays` wrote, or return None.

        None if the file does not exist, or is damaged: then it is removed. numpy compares
        the checksum that every array in it has.
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

    def load_lengths(self, name: str, number: int) -> np.ndarray:
        """Read a block's `lengths` without its values."""
        try:
            with np.load(self.block(name, number), allow_pickle=False) as arrays:
                return arrays["lengths"]
        except _DAMAGED:
            return self.load_block(name, number).lengths

    def remove_outdated(self, name: str, count: int, source: Callable[[int], str]) -> None:
        """Remove blocks, of `count`, that are damaged or whose source has changed.

        A source that is empty is not known, and so taken as unchanged.
        """
        outdated = 0
        for number in range(count):
            found = self.load_arrays(self.block(name, number))
            if found is None:
                continue
            if set(found) != set(Block._fields) or source(number) not in ("", str(found["source"])):
                self.block(name, number).unlink(missing_ok=True)
                outdated += 1
        if outdated:
            print(
                f"{self.path}: {outdated} blocks of tracks are outdated, as audio files have been "
                "replaced; they are made again",
                file=sys.stderr,
            )

    def missing(self, name: str, count: int) -> list[int]:
        """Return the numbers of the blocks, of `count`, that are not done yet."""
        return [number for number in range(count) if not self.block(name, number).exists()]

    def remove(self) -> None:
        """Remove the folder and all in it."""
        shutil.rmtree(self.path, ignore_errors=True)

    @contextlib.contextmanager
    def locked(self, name: str) -> Iterator[None]:
        """Hold a lock, for which other processes of this run wait."""
        with self._open_lock(name) as handle:
            lock(handle, wait=True)
            yield

    def claim(self, name: str) -> Callable[[], None] | None:
        """Take a lock, and return what releases it; None if another process holds it."""
        handle = self._open_lock(name)
        if not lock(handle, wait=False):
            handle.close()
            return None

        def release() -> None:
            Path(handle.name).unlink(missing_ok=True)
            handle.close()

        return release

    def claim_blocks(
        self, name: str, numbers: Sequence[int], held: Held, busy: list[int]
    ) -> Iterator[int]:
        """Yield the numbers of unfinished blocks, each locked when it is asked for.

        A yielded block is appended to `held`, with the function that releases its lock. Blocks
        that another process has locked are appended to `busy`.
        """
        for number in numbers:
            file = self.block(name, number)
            if file.exists():
                continue
            release = self.claim(file.stem)
            if release is None:
                busy.append(number)
            elif file.exists():  # another process has finished it since
                release()
            else:
                held.append((number, release))
                yield number

    def _open_lock(self, name: str) -> IO[bytes]:
        self.path.mkdir(parents=True, exist_ok=True)
        return (self.path / f"{name}.lock").open("wb")
