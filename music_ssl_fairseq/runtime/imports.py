"""Import packages that only some commands need, and librosa in one process at a time."""

import os.path
import sys
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import IO

from music_ssl_fairseq.errors import InputError
from music_ssl_fairseq.runtime.files import lock

_HERE = Path(__file__).parents[2]
_IS_CLONE = (_HERE / "pyproject.toml").exists()
SOURCE = str(_HERE) if _IS_CLONE and not os.path.samefile(os.curdir, _HERE) else "."
"""Folder of the repository, for `pip install -e`."""


def optional(module: str, extra: str) -> ModuleType:
    """Import `module`, which the extra called `extra` in pyproject.toml installs.

    Raises InputError if it is not installed, with the command that installs it.
    """
    try:
        return import_module(module)
    except ModuleNotFoundError:
        package = module.partition(".")[0]
        raise InputError(
            f"the package {package} is not installed; what needs it is installed by",
            f"pip install -e '{SOURCE}[{extra}]'",
        ) from None


def import_librosa() -> ModuleType:
    """Return librosa with its compiled parts, imported under a lock.

    The first import on a machine compiles for half a minute and caches the result on disk. Numba
    writes this cache without a lock: two processes at once can leave an index that confuses
    functions, and every later import of librosa ends in a segmentation fault.
    """
    import librosa  # imports its own modules on demand

    if "librosa.beat" not in sys.modules:
        with _shared_file(Path(librosa.__file__)) as handle:
            lock(handle, wait=True)
            import_module("librosa.beat")  # which imports all that compiles
    return librosa


def _shared_file(path: Path) -> IO[bytes]:
    """Open a file that all processes with this installation of librosa share."""
    try:
        return path.open("r+b")  # network file systems only lock what is open for writing
    except OSError:
        return path.open("rb")
