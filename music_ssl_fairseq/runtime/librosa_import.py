"""Import librosa, in one process at a time; no other file imports it."""

import sys
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import IO

import librosa  # imports its own modules on demand

from music_ssl_fairseq.runtime.files import lock


def import_librosa() -> ModuleType:
    """Return librosa with its compiled parts, imported under a lock.

    The first import on a machine compiles for half a minute and caches the result on disk. Numba
    writes this cache without a lock: two processes at once can leave an index that confuses
    functions, and every later import of librosa ends in a segmentation fault.
    """
    if "librosa.beat" not in sys.modules:
        with _own_file() as handle:
            lock(handle, wait=True)
            import_module("librosa.beat")  # which imports all that compiles
    return librosa


def _own_file() -> IO[bytes]:
    """Open a file of librosa itself, which all processes with this installation share."""
    path = Path(librosa.__file__)
    try:
        return path.open("r+b")  # network file systems only lock what is open for writing
    except OSError:
        return path.open("rb")
