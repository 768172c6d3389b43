"""Properties of a device: Triton, its generation, its multiprocessors, its precision."""

import functools
import importlib.util

import torch
from torch import Tensor

from music_ssl_fairseq.runtime.kernel_cache import keep_kernels


@functools.cache
def has_triton() -> bool:
    """Return whether Triton is installed; if so, set where its kernels are kept.

    Cached: the look-up takes longer than a kernel launch.
    """
    installed = importlib.util.find_spec("triton") is not None
    if installed:
        keep_kernels()
    return installed


@functools.cache
def is_ampere(device: torch.device) -> bool:
    """Return whether a GPU is of the Ampere generation (A100) or later."""
    return torch.cuda.get_device_capability(device) >= (8, 0)


@functools.cache
def is_hopper(device: torch.device) -> bool:
    """Return whether a GPU is an H100 or H200, which have kernels of their own."""
    return torch.cuda.get_device_capability(device) == (9, 0)


@functools.cache
def multiprocessors(device: torch.device) -> int:
    """Return the number of a GPU's multiprocessors; 1 in Triton's interpreter."""
    if device.type != "cuda":
        return 1
    return torch.cuda.get_device_properties(device).multi_processor_count


def working_dtype(x: Tensor) -> torch.dtype:
    """Return the type in which matrix products of `x` run: autocast's, where that is on."""
    kind = x.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype
