"""Write files atomically, lock folders, and read parts of files that are too large to load."""

import contextlib
import fcntl
import json
import os
import re
import shlex
import socket
import time
import weakref
from collections.abc import Iterator
from hashlib import blake2b, file_digest
from pathlib import Path
from typing import IO, Any

from music_ssl_fairseq.errors import InputError

_TEMPORARY = re.compile(r"\.[0-9a-f]{16}\.\d+\.tmp(\..*)?")
"""Names from `atomic_path`."""

_LONE = re.compile("[\ud800-\udfff]")


def temporary_beside(target: Path) -> Path:
    """Return the temporary name of `atomic_path`, in a folder that is made if needed."""
    target.parent.mkdir(parents=True, exist_ok=True)
    # A hash, because the target's own name may have the maximal length.
    name = blake2b(os.fsencode(target.name), digest_size=8).hexdigest()
    return target.with_name(f".{name}.{os.getpid()}.tmp{target.suffix}")


@contextlib.contextmanager
def atomic_path(target: str | os.PathLike) -> Iterator[Path]:
    """Give a temporary name beside `target`; rename it to `target` if the block succeeds.

    If the block raises, the temporary file is removed, and `target` stays as it was. The suffix of
    `target` is kept, because soundfile and numpy choose a format by it.
    """
    temporary = temporary_beside(Path(target))
    try:
        yield temporary
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(file: str | os.PathLike, text: str) -> None:
    """Write a UTF-8 file atomically; bytes of a name that are no UTF-8 are written as `\\udcff`."""
    with atomic_path(file) as temporary:
        temporary.write_text(text, encoding="utf-8", errors="backslashreplace")


def write_json(file: str | os.PathLike, contents: Any, **options: Any) -> None:
    """Write JSON atomically, indented; `options` as of `json.dumps`."""
    text = json.dumps(contents, indent=2, ensure_ascii=False, **options) + "\n"
    # `write_text` would make JSON's own escape of it, which readers refuse.
    write_text(file, _LONE.sub(lambda found: rf"\\u{ord(found[0]):x}", text))


def checksum(file: str | os.PathLike) -> str:
    """Return the SHA-256 of a file, in hex."""
    with Path(file).open("rb") as handle:
        return file_digest(handle, "sha256").hexdigest()


def require_writable(folder: str | os.PathLike, option: str) -> None:
    """Refuse a folder, named by a command's `option`, that cannot be written or made.

    Raises InputError if it, or the folder that it would be made in, is no folder or not writable.
    """
    there = os.path.abspath(folder)
    while not os.path.exists(there):
        there = os.path.dirname(there)
    if not os.path.isdir(there) or not os.access(there, os.W_OK | os.X_OK):
        why = "not writable" if os.path.isdir(there) else "Not a directory"
        raise InputError(
            f"{folder}: {why}; give {option} another folder", f"ls -ld {shlex.quote(there)}"
        )


def remove_temporary(folder: Path, idle_seconds: float = 0.0) -> None:
    """Remove files that killed processes left in a folder while writing with `atomic_path`.

    The caller must know that no other process writes there, or leave those alone that changed in
    the last `idle_seconds`.
    """
    for path in folder.glob(".*.tmp*"):
        if _TEMPORARY.fullmatch(path.name):
            with contextlib.suppress(FileNotFoundError):  # finished meanwhile
                if time.time() - path.stat().st_mtime >= idle_seconds:
                    path.unlink()


def lock(handle: IO[bytes], wait: bool) -> bool:
    """Lock an open file until it is closed; return whether the lock is held.

    On a file system without locks it counts as held: two processes may then do the same
    work, with the same result.
    """
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        return False
    except OSError:
        return True
    return True


_HELD: "weakref.WeakSet[IO[bytes]]" = weakref.WeakSet()


def hold(file: str | os.PathLike, doing: str, way_out: str) -> IO[bytes]:
    """Lock a folder for one process; return the handle that holds the lock.

    The lock ends when the handle is closed or the process ends; forked processes do not have it.
    A file that remains means nothing by itself; `let_go` removes it.

    Raises InputError if another process holds the lock.

    Args:
        file: the lock file in the folder, made if needed. It names the process that holds it.
        doing: for the message, for example `trains`.
        way_out: what to do instead, for the message.
    """
    file = Path(file)
    file.parent.mkdir(parents=True, exist_ok=True)
    handle = file.open("ab+")
    held = lock(handle, wait=False)
    while held and not _is_there(file, handle):  # `let_go` has removed it meanwhile
        handle.close()
        handle = file.open("ab+")
        held = lock(handle, wait=False)
    if not held:
        handle.seek(0)
        holder = handle.read(200).decode("utf-8", "replace").strip() or "another process"
        handle.close()
        raise InputError(f"{file.parent}: {holder} {doing} here already; {way_out}")
    with contextlib.suppress(OSError):  # full disk: the lock is held without a name
        handle.truncate(0)
        handle.write(f"process {os.getpid()} on {socket.gethostname()}".encode())
        handle.flush()
    _HELD.add(handle)
    return handle


def let_go(file: str | os.PathLike, handle: IO[bytes]) -> None:
    """Release the lock of `hold`, and remove its file."""
    with contextlib.suppress(OSError):  # an open file cannot be removed everywhere
        Path(file).unlink()
    handle.close()


def _is_there(file: Path, handle: IO[bytes]) -> bool:
    try:
        return os.path.samestat(os.fstat(handle.fileno()), file.stat())
    except FileNotFoundError:
        return False


# A forked worker closes locks, because it may outlive its killed parent.
os.register_at_fork(after_in_child=lambda: [handle.close() for handle in list(_HELD)])


class FileParts:
    """An open file that is read in parts; processes may share it."""

    def __init__(self, file: Path):
        self.file = file
        self._handle = file.open("rb")

    def __getstate__(self) -> Path:
        return self.file  # an open file cannot be pickled: a spawned worker opens it again

    def __setstate__(self, state: Path) -> None:
        self.__init__(state)  # type: ignore[misc]

    def read(self, begin: int, count: int) -> bytes:
        """Read `count` bytes from `begin` on.

        Through a memory map instead, a file that has been cut would kill the process.

        Raises InputError if they are no longer there, or cannot be read.
        """
        try:
            part = os.pread(self._handle.fileno(), count, begin)
        except OSError as error:
            raise InputError(f"{self.file}: {error.strerror or error}") from None
        if len(part) < count:
            raise InputError(
                f"{self.file}: it has been cut, to less than {begin + count} bytes, since it was "
                "opened: make it again, and run the same command to continue"
            )
        return part
