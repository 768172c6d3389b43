"""Checkpoints that are either whole or absent.

A state is written under a temporary name, flushed to the disk, read back and compared with its
checksums, and only then renamed. So a kill or a full disk at any moment leaves the previous file.
"""

import contextlib
import logging
import os
import shutil
import time
import zipfile
from pathlib import Path
from typing import Any

import torch

from music_ssl_fairseq.errors import InputError
from music_ssl_fairseq.runtime.files import atomic_path
from music_ssl_fairseq.runtime.unpickling import utf8_name
from music_ssl_fairseq.runtime.user_command import corrected

logger = logging.getLogger(__name__)

_MAX_ATTEMPTS = 3
_RETRY_SECONDS = 2.5  # a full or slow disk may recover (fairseq's numbers)


def write_state(state: Any, path: str | os.PathLike) -> None:
    """Write a state to a path, atomically; each attempt begins with an empty file.

    Raises InputError if writing fails, for instance on a full disk. A previous file stays.
    """
    path = Path(path)
    for attempt in range(1, _MAX_ATTEMPTS + 1):
        try:
            with atomic_path(path) as temporary:
                _write_whole(state, temporary)
            _to_disk(path.parent)
            return
        except OSError as error:
            reason = error.strerror or str(error)
        if attempt < _MAX_ATTEMPTS:
            logger.warning("%s: %s; trying again", path, reason)
            time.sleep(_RETRY_SECONDS)
    raise InputError(
        f"{path}: {reason}; this checkpoint is not written, and those before it are whole. "
        "Make room, and run the same command to continue"
    )


def _write_whole(state: Any, path: Path) -> None:
    """Write a new file, flush it to the disk and verify it."""
    with path.open("wb") as file:
        try:
            torch.save(state, file)
        except RuntimeError as error:
            if isinstance(error.__context__, OSError):  # of a failed write, which torch wraps
                raise error.__context__ from None
            raise
        file.flush()
        os.fsync(file.fileno())
    reason = damage(path)
    if reason:
        raise OSError(f"what was written does not read back ({reason})")


def _to_disk(folder: Path) -> None:
    """Flush a rename to the disk, where folders can be opened."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def link(source: str | os.PathLike, path: str | os.PathLike) -> None:
    """Give a checkpoint a second name, atomically; copy it where there are no hard links.

    Raises InputError if writing fails, for instance on a full disk. A previous file stays.
    """
    try:
        with atomic_path(path) as temporary:
            try:
                os.link(source, temporary)
            except OSError:
                shutil.copyfile(source, temporary)
                with temporary.open("rb+") as file:
                    os.fsync(file.fileno())
        _to_disk(Path(path).parent)
    except OSError as error:
        raise InputError(
            f"{os.fspath(path)}: {error.strerror or error}; {os.fspath(source)} is whole, and this "
            "copy of it is not written. Make room, and run the same command to continue"
        ) from None


def damage(path: str | os.PathLike) -> str | None:
    """Return what is wrong with a checkpoint's bytes; None if they are complete and unchanged."""
    try:
        with zipfile.ZipFile(path) as file:
            part = file.testzip()
    except zipfile.BadZipFile:
        return "it ends early, or is no checkpoint"
    except Exception as error:  # a damaged table of contents raises errors of many kinds
        return f"{type(error).__name__}: {error}"
    return f"{part} is not as it was written" if part else None


def checkpoint_to_resume(folder: Path, expected: Path, suffix: str) -> Path | None:
    """Return the checkpoint to resume from: `expected`, or the newest whole one of its folder.

    None if there is no checkpoint yet.

    Raises InputError if all are damaged; or if `expected` is elsewhere, and missing or damaged.

    Args:
        folder: `checkpoint.save_dir`.
        expected: the file that fairseq would load.
        suffix: of this process's checkpoints, before `.pt`.
    """
    reason = damage(expected) if expected.exists() else "it is missing"
    if reason is None:
        return expected
    if expected.parent.resolve() != folder.resolve():
        if not expected.exists():
            raise InputError(f"{expected}: no such checkpoint", corrected(expected))
        return expected  # possibly an old format of torch, which fairseq reads
    others = [f for f in folder.glob(f"checkpoint*{suffix}.pt") if f != expected]
    for updates, other in sorted(((_updates(f), f) for f in others), reverse=True):
        if updates >= 0 and damage(other) is None:
            logger.warning(
                "%s: %s; continuing from %s, which is whole (%d updates)",
                expected,
                reason,
                other,
                updates,
            )
            return other
    if not expected.exists() and not others:
        return None
    raise InputError(
        f"{expected}: {reason}, and no other checkpoint in {folder} is whole; to start again, "
        f"remove {folder}"
    )


def _updates(path: Path) -> int:
    """Return a checkpoint's updates; -1 if training cannot continue from it."""
    try:
        with utf8_name(path) as name:
            state = torch.load(name, map_location="cpu", mmap=True, weights_only=True)
        state["extra_state"]["train_iterator"]
        return int(state["optimizer_history"][-1]["num_updates"])
    except Exception:  # a damaged file raises errors of many kinds
        return -1
