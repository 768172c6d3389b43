"""Bound workers and frames by a stated memory.

Three things take memory that can grow: the frames that K-means is fitted on, worker processes, and,
in each, the audio and features of one chunk. A chunk's length bounds the last. The other two never
exist at once, because workers end before K-means begins.
"""

import re
from argparse import ArgumentTypeError
from pathlib import Path

from music_ssl_fairseq.errors import InputError
from music_ssl_fairseq.runtime.user_command import with_option

_DEFAULT_BYTES = 4 << 30
_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}

_MAIN_BYTES = 400 << 20  # the first process, with faiss and its buffers
_WORKER_BYTES = 220 << 20  # a worker of numpy and scipy, with a minute of audio and its features
_TORCH_BYTES = 700 << 20  # torch, with a model's results for half a minute
_ARRAYS_PER_CENTROID = 4 + 2 * 30  # float32 vectors: sums, copies, and what faiss starts from
_BYTES_PER_FRAME = 32  # that K-means needs besides the frame's values


def parse_size(text: str) -> int:
    """Parse `4G`, `512M`, `2.5GiB` or a number of bytes, into bytes. Units are powers of 1024.

    Raises ArgumentTypeError for other text, and for zero.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT]?)(?:i?B)?", text.strip(), re.IGNORECASE)
    if match is None or float(match[1]) == 0:
        raise ArgumentTypeError(f"{text!r} is not a size such as 4G or 512M")
    return int(float(match[1]) * _UNITS[match[2].upper()])


def show_size(size: int) -> str:
    """Format bytes as `4.0 GB` or `512 MB` (powers of 1024)."""
    return f"{size / (1 << 30):.1f} GB" if size >= 1 << 30 else f"{size / (1 << 20):.0f} MB"


def model_size(checkpoint: str | None) -> int:
    """Return the bytes that a process needs for torch and a model: 0 without one.

    All of the file or folder counts, because reading it may take that much for a moment.
    """
    if checkpoint is None:
        return 0
    path = Path(checkpoint)
    files = path.rglob("*") if path.is_dir() else [path]
    return _TORCH_BYTES + sum(file.stat().st_size for file in files if file.is_file())


def memory_bound(asked: int | None, model: int) -> int:
    """Return the bytes of all processes: those `asked` for, or 4 GB and two processes' models."""
    return _DEFAULT_BYTES + 2 * model if asked is None else asked


def workers_that_fit(memory: int, workers: int, model: int = 0) -> int:
    """Return how many of `workers` may run at once within `memory` bytes.

    The parent process has a `model`, too, of `model_size` bytes.

    Raises InputError if not even one may.
    """
    each = _WORKER_BYTES + model
    fit = min(workers, (memory - _MAIN_BYTES - model) // each)
    if fit < 1:
        needed = _MAIN_BYTES + model + each
        raise InputError(
            f"--memory {show_size(memory)} is too little: one worker needs {show_size(needed)} "
            "with the process that it works for",
            with_option("--memory", f"{-(-needed // _UNITS['G'])}G"),
        )
    return fit


def check_frames(
    asked: int | None, default: int, memory: int, dimension: int, k: int, model: int = 0
) -> int:
    """Return how many frames to hold at once for K-means, within `memory` bytes.

    Raises InputError if those asked for do not fit, or fewer than `k` would.

    Args:
        asked: on the command line, None if not.
        default: how many to take then, if they fit.
        dimension: values per frame.
        model: see `model_size`.
    """
    fixed = _MAIN_BYTES + model + 4 * k * dimension * _ARRAYS_PER_CENTROID
    per_frame = 4 * dimension + _BYTES_PER_FRAME
    fit = max(0, memory - fixed) // per_frame
    needed = -(-(fixed + max(k, asked or 0) * per_frame) // _UNITS["G"])
    if asked is not None and asked > fit >= k:
        raise InputError(
            f"{asked} frames of {dimension} values do not fit --memory {show_size(memory)}, which "
            f"holds {fit}: give more memory, fewer --max-frames, or --minibatch {fit}",
            with_option("--memory", f"{needed}G"),
        )
    if fit < k:
        raise InputError(
            f"--memory {show_size(memory)} holds {fit} frames of {dimension} values, fewer than "
            f"k = {k} clusters: choose a smaller --k, or give {needed} GB",
            with_option("--memory", f"{needed}G"),
        )
    return min(default, fit) if asked is None else asked
