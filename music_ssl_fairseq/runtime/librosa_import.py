"""The one place that imports librosa."""

import sys
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import IO

import librosa  # imports its own modules when they are asked for

from music_ssl_fairseq.runtime.files import lock


def import_librosa() -> ModuleType:
    """librosa with its compiled parts, which processes import one after the other.

    The first import on a machine compiles for half a minute and keeps the result on disk. Numba
    numbers these files without a lock: two processes that do it at once leave an index that takes
    one function for another, and from then on every import of librosa ends in a segmentation fault.
    """
    if "librosa.beat" not in sys.modules:
        with _own_file() as handle:
            lock(handle, wait=True)
            import_module("librosa.beat")  # which imports all that compiles
    return librosa


def _own_file() -> IO[bytes]:
    """A file of librosa itself: the same for all who share an installation, whoever may write."""
    path = Path(librosa.__file__)
    try:
        return path.open("r+b")  # network file systems only lock what is open for writing
    except OSError:
        return path.open("rb")
