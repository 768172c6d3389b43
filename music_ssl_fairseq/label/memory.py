"""How much of what fits a stated memory.

Three things take memory that can grow: the frames that K-means is fitted on, worker processes, and,
in each, the audio and features of one window. The last is bounded by the window's length. The other
two are never there at once, because workers end before K-means begins.
"""

import re
from pathlib import Path

from music_ssl_fairseq.errors import InputError

_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}

_MAIN = 400 << 20  # the first process, with faiss and its buffers
_WORKER = 220 << 20  # a worker of numpy and scipy, with a minute of audio and its features
_TORCH = 700 << 20  # torch, with what a model computes of half a minute, or audio for a GPU
_START = 2 * 30  # frames a centroid that choosing where to begin holds, next to all frames
_FRAME = 32  # bytes that K-means needs of each frame besides its values


def parse_size(text: str) -> int:
    """`4G`, `512M`, `2.5GiB` or a number of bytes, in bytes. Units are powers of 1024.

    Raises:
        ValueError: if it is none of these, or nothing.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT]?)(?:i?B)?", text.strip(), re.IGNORECASE)
    if match is None or float(match[1]) == 0:
        raise ValueError(f"{text!r} is not a size such as 4G or 512M")
    return int(float(match[1]) * _UNITS[match[2].upper()])


def show_size(size: int) -> str:
    """`4.0 GB` and so on (powers of 1024)."""
    return f"{size / (1 << 30):.1f} GB" if size >= 1 << 30 else f"{size / (1 << 20):.0f} MB"


def model_size(checkpoint: str | None, on_gpu: bool = False) -> int:
    """Bytes that a process holds at most of torch and a model: 0 if it needs neither.

    All of the file or folder counts, as reading it may take that much for a moment.
    """
    if checkpoint is None:
        return _TORCH if on_gpu else 0
    path = Path(checkpoint)
    files = path.rglob("*") if path.is_dir() else [path]
    return _TORCH + sum(file.stat().st_size for file in files if file.is_file())


def frames_that_fit(memory: int, dimension: int, k: int, model: int = 0) -> int:
    """Frames of so many values that K-means can be fitted on within `memory` bytes: 0 or more.

    Args:
        model: see `model_size`.
    """
    left = memory - _MAIN - model - 4 * k * dimension * (_START + 4)
    return max(0, left // (4 * dimension + _FRAME))


def workers_that_fit(memory: int, workers: int, model: int = 0) -> int:
    """Workers out of `workers` that may run at once within `memory` bytes.

    Args:
        model: see `model_size`. The process that they work for has one, too.

    Raises:
        InputError: if not even one may.
    """
    each = _WORKER + model
    fit = min(workers, (memory - _MAIN - model) // each)
    if fit < 1:
        raise InputError(
            f"--memory {show_size(memory)} is too little: one worker needs "
            f"{show_size(_MAIN + model + each)} with the process that it works for"
        )
    return fit


def check_frames(
    asked: int | None, default: int, memory: int, dimension: int, k: int, model: int = 0
) -> int:
    """How many frames to hold at once for K-means.

    Args:
        asked: on the command line, None if not.
        default: what to take then, if it fits.
        model: see `model_size`.

    Raises:
        InputError: if those asked for do not fit, or hardly any would.
    """
    fit = frames_that_fit(memory, dimension, k, model)
    if asked is not None and asked > fit:
        raise InputError(
            f"{asked} frames of {dimension} values do not fit --memory {show_size(memory)}, which "
            f"holds {fit}: give more memory, fewer --max-frames, or --minibatch {fit}"
        )
    if fit < k:
        raise InputError(
            f"--memory {show_size(memory)} holds {fit} frames of {dimension} values, fewer than "
            f"k = {k} clusters: give more memory"
        )
    return min(default, fit) if asked is None else asked
