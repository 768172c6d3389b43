"""Writing files so that a reader never sees half of one, and that writers wait for each other."""

import contextlib
import os
from collections.abc import Iterator
from hashlib import blake2b
from pathlib import Path
from typing import IO


@contextlib.contextmanager
def atomic_path(target: str | os.PathLike) -> Iterator[Path]:
    """Give a temporary name beside `target`; rename it to `target` if the block succeeds.

    The temporary file is removed if the block raises, and an existing `target` stays as it was.
    Its folder is made if needed. The temporary name keeps the suffix of `target`, because
    soundfile and numpy choose a format by it.
    """
    target = Path(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    # Not the target's own name with something added: that may be as long as a name can be.
    name = blake2b(os.fsencode(target.name), digest_size=8).hexdigest()
    temporary = target.with_name(f".{name}.{os.getpid()}.tmp{target.suffix}")
    try:
        yield temporary
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)


def lock(handle: IO[bytes], wait: bool) -> bool:
    """Lock an open file until it is closed; whether the lock is held now.

    Where a system or a file system has no locks, it counts as held: two processes may then do the
    same work, with the same result.
    """
    try:
        import fcntl
    except ImportError:
        return True
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        return False
    except OSError:
        return True
    return True
