"""Properties of a device: Triton, its generation, its multiprocessors, its precision and sums."""

import contextlib
import functools
import importlib.util
import os
from pathlib import Path

import torch
from torch import Tensor


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


_VARIABLES = {"TORCHINDUCTOR_CACHE_DIR": "inductor", "TRITON_CACHE_DIR": "triton"}


def keep_kernels() -> None:
    """Set the caches of torch's compiler and of Triton, before either is used.

    By default they lie in the temporary folder, which a Slurm job or a reboot empties: each run
    would compile for most of a minute.

    They lie in `music_ssl_fairseq/` of $XDG_CACHE_HOME or ~/.cache. Settings of the user stay,
    and so do the defaults where that folder cannot be written. Several processes may share the
    caches: both write a file under a temporary name and rename it.
    """
    home = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    for variable, name in _VARIABLES.items():
        folder = Path(home, "music_ssl_fairseq", name)
        if variable not in os.environ and _is_writable(folder):
            os.environ[variable] = str(folder)


def _is_writable(folder: Path) -> bool:
    with contextlib.suppress(OSError):
        if folder.is_absolute():
            folder.mkdir(parents=True, exist_ok=True)
            return os.access(folder, os.W_OK | os.X_OK)
    return False


def weight_gradient(grad: Tensor, x: Tensor) -> Tensor:
    """Compute `grad.t() @ x`, stored in fp32 as it is summed, if the device can.

    From the gradient of a layer's output `[N, outputs]` and its input `[N, inputs]` to
    `[outputs, inputs]`, in fp32 or the inputs' wider type.
    """
    if grad.is_cuda:
        return torch.mm(grad.t(), x, out_dtype=torch.float32)
    product = grad.t() @ x
    return product.to(torch.promote_types(product.dtype, torch.float32))
