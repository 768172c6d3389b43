"""Writing files so that a reader never sees half of one."""

import contextlib
import os
from collections.abc import Iterator
from hashlib import blake2b
from pathlib import Path


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
