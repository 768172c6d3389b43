"""CPUs, the device of models, torch's defaults, and a stack for signals."""

import faulthandler
import os
from collections.abc import Iterator
from contextlib import contextmanager

from music_ssl_fairseq.errors import InputError
from music_ssl_fairseq.runtime.user_command import with_option


def available_cpus() -> int:
    """Return the CPUs this process may use: under a job scheduler often fewer than exist."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def choose_device(asked: str = "auto") -> str:
    """Return the device that is asked for, as torch names it; `auto` is a GPU if there is one.

    Raises InputError if a GPU is asked for and there is none.
    """
    if asked == "cpu":
        return "cpu"
    import torch

    if torch.cuda.is_available():
        return "cuda" if asked == "auto" else asked
    if asked != "auto":
        again = with_option("--device", "cpu")
        raise InputError(f"--device {asked}: torch finds no GPU here", again)
    return "cpu"


@contextmanager
def own_defaults() -> Iterator[None]:
    """Make new tensors in float32 on the CPU, whatever defaults a program has set in torch."""
    import torch

    dtype = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    try:
        with torch.device("cpu"):
            yield
    finally:
        torch.set_default_dtype(dtype)


def give_signals_a_stack() -> None:
    """Let `faulthandler` install an alternate stack for signals to this thread.

    While oneDNN multiplies matrices on a CPU, for example in a positional convolution, the stack
    pointer points into the heap (oneDNN 3.11, issue 4845). The frame of a signal would overwrite
    the heap there, and the process would crash.
    """
    if not faulthandler.is_enabled():
        faulthandler.enable(file=2)
