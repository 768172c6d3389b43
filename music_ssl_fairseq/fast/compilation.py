"""Functions compiled for the shapes that keep coming."""

import functools
import logging
import os
import shutil
from collections import Counter
from collections.abc import Callable, Hashable
from typing import Any

import torch

from music_ssl_fairseq.fast.device import has_triton

logger = logging.getLogger(__name__)


@functools.cache
def can_compile() -> bool:
    """Return whether torch.compile can make GPU kernels here: it needs Triton and a C compiler."""
    missing = ""
    if not has_triton():
        missing = "triton is not installed"
    elif not (os.environ.get("CC") or shutil.which("cc") or shutil.which("gcc")):
        missing = "no C compiler found"
    if missing:
        logger.warning("%s: training without compiled kernels, more slowly", missing)
    return not missing


@functools.cache
def compiled(function: Callable[..., Any], enabled: bool) -> Callable[..., Any]:
    """Return `function`, compiled for each shape if `enabled`; the same object each time.

    It is part of no module, so it leaves no trace in a state dict.
    """
    return torch.compile(function, dynamic=False) if enabled else function


class ShapeGate:
    """Admit one shape per mode: the first one that comes twice.

    Kernels are compiled for fixed shapes. The last batch of an epoch is smaller and comes once:
    compiling for it would cost a minute each time, so it runs uncompiled.
    """

    def __init__(self) -> None:
        self._modes: set[Hashable] = set()
        self._seen: Counter = Counter()
        self._admitted: dict[Hashable, tuple[int, ...]] = {}

    def is_new(self, mode: Hashable) -> bool:
        """Return whether a mode has had no shape yet."""
        return mode not in self._modes

    def __call__(self, mode: Hashable, shape: tuple[int, ...]) -> bool:
        """Return whether to run compiled: from the second time on that a mode's shape comes."""
        self._modes.add(mode)
        if mode not in self._admitted:
            self._seen[mode, shape] += 1
            if self._seen[mode, shape] < 2:
                return False
            self._admitted[mode] = shape
        return self._admitted[mode] == shape
