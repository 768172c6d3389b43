"""Count CPUs, and choose the device that models run on."""

import os

from music_ssl_fairseq.errors import InputError
from music_ssl_fairseq.runtime.typed import with_option


def available_cpus() -> int:
    """Return the CPUs this process may use: under a job scheduler often fewer than exist."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def choose_device(asked: str = "auto") -> str:
    """Return the device that is asked for, as torch names it; `auto` is a GPU if there is one.

    Raises:
        InputError: if a GPU is asked for and there is none.
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
