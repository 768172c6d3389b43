"""When the fast path is taken: other layouts and algorithms on GPUs, and compiled kernels.

It computes the same as the plain path, to rounding. Compiled functions are not part of any module,
so they leave no trace in a state dict.
"""

import functools
import importlib.util
import logging
import os
import shutil
from collections import Counter
from collections.abc import Callable, Hashable
from typing import Any

import torch
from torch import Tensor

from music_ssl_fairseq.compat import TENSOR_DESCRIPTORS

logger = logging.getLogger(__name__)


def use_fast(setting: str, x: Tensor) -> bool:
    """Whether `model.fast` (auto, on or off) means the fast path for a tensor like `x`."""
    return setting == "on" or (setting == "auto" and x.is_cuda)


@functools.cache
def has_triton() -> bool:
    """Whether triton is installed: to look takes longer than to start a kernel."""
    return importlib.util.find_spec("triton") is not None


@functools.cache
def can_compile() -> bool:
    """Whether torch.compile can make GPU kernels here: it needs triton and a C compiler."""
    if not has_triton():
        logger.warning("triton is not installed: training without compiled kernels, more slowly")
        return False
    compiler = os.environ.get("CC") or shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        logger.warning("no C compiler found: training without compiled kernels, more slowly")
        return False
    return True


@functools.cache
def is_hopper(device: torch.device) -> bool:
    """Whether a GPU is an H100 or H200, and Triton recent enough for kernels written for these."""
    return TENSOR_DESCRIPTORS and torch.cuda.get_device_capability(device) == (9, 0)


@functools.cache
def multiprocessors(device: torch.device) -> int:
    """How many programs run at once at least: a GPU's multiprocessors, 1 in the interpreter."""
    if device.type != "cuda":
        return 1
    return torch.cuda.get_device_properties(device).multi_processor_count


def working_dtype(x: Tensor) -> torch.dtype:
    """The type in which matrix products of `x` run: autocast's, where that is on."""
    kind = x.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype


class ShapeGate:
    """Lets through the one shape, for each mode, that keeps coming.

    Kernels are compiled for fixed shapes. The last batch of an epoch is smaller and comes once:
    compiling for it would cost a minute each time, so it runs as it is.
    """

    def __init__(self) -> None:
        self._seen: Counter = Counter()
        self._chosen: dict[Hashable, tuple[int, ...]] = {}

    def __call__(self, mode: Hashable, shape: tuple[int, ...]) -> bool:
        """Whether to run compiled: from the second time on that a mode's first such shape comes."""
        if mode not in self._chosen:
            self._seen[mode, shape] += 1
            if self._seen[mode, shape] < 2:
                return False
            self._chosen[mode] = shape
        return self._chosen[mode] == shape


@functools.cache
def compiled(function: Callable[..., Any], wanted: bool) -> Callable[..., Any]:
    """`function`, if wanted compiled for each shape it is called with; always the same object."""
    return torch.compile(function, dynamic=False) if wanted else function
