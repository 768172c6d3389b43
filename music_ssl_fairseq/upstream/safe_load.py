"""Reading a torch file without running anything that is in it."""

import argparse
import pickle
import re
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

from music_ssl_fairseq import compat
from music_ssl_fairseq.errors import InputError

_ZIP = b"PK\x03\x04"
_PICKLE = b"\x80"
_GIT_LFS = b"version https://git-lfs"


def safe_load(path: Path) -> Any:
    """What `torch.save` wrote, of any age: tensors and plain settings, nothing else.

    Tensors of newer files are mapped, so that parts nobody looks at (an optimizer's state) cost
    nothing.

    Raises:
        InputError: if there is no such file, it is no checkpoint, it is damaged, or it asks for
            anything that could run code.
    """
    head = _first_bytes(path)
    zipped = head.startswith(_ZIP)
    if not zipped and not head.startswith(_PICKLE):
        raise InputError(f"{path}: not a checkpoint; {_impression(head)}")
    if zipped and not zipfile.is_zipfile(path):
        raise InputError(f"{path}: truncated or damaged: copy or download it again")
    try:
        with torch.serialization.safe_globals(_plain_data()):
            return torch.load(path, map_location="cpu", weights_only=True, mmap=zipped)
    except pickle.UnpicklingError as error:
        raise InputError(_refusal(path, str(error))) from None
    except (RuntimeError, EOFError, OSError, ValueError, KeyError, AttributeError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise InputError(
            f"{path}: truncated or damaged ({reason[:120]}): copy or download it again"
        ) from None


def _first_bytes(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(64)
    except FileNotFoundError:
        raise InputError(f"{path}: no such checkpoint") from None
    except OSError as error:
        raise InputError(f"{path}: {error.strerror or error}") from None


def _impression(head: bytes) -> str:
    if not head:
        return "the file is empty (0 bytes)"
    if head.startswith(_GIT_LFS):
        return "it is a Git LFS pointer: fetch the file itself with `git lfs pull`"
    if all(byte >= 9 for byte in head):
        text = head.splitlines()[0][:40].decode("utf-8", "backslashreplace")
        return f"it is text that begins with {text!r}"
    return "torch did not write it"


def _refusal(path: Path, error: str) -> str:
    asked = re.search(r"GLOBAL (\S+)", error) or re.search(r"[Uu]nsupported class (\S+)", error)
    what = f"it asks for {asked[1]}" if asked else "it holds more than tensors and settings"
    return (
        f"{path}: refused, because unpickling it could run code ({what}); if you trust where it "
        "comes from, open it there and store its tensors and settings alone"
    )


def _plain_data() -> list[Any]:
    """What stock checkpoints hold besides what `compat` already allows: numbers and settings."""
    from omegaconf import nodes

    compat.allow_fairseq_checkpoints()
    numbers = [type(np.dtype(kind)) for kind in ("f8", "f4", "f2", "i8", "i4", "?")]
    scalar = np.float64(0).__reduce__()[0]
    return [
        argparse.Namespace,
        np.dtype,
        *numbers,
        scalar,
        # Where numpy kept it before version 2.
        (scalar, "numpy.core.multiarray.scalar"),
        nodes.StringNode,
        nodes.IntegerNode,
        nodes.FloatNode,
        nodes.BooleanNode,
    ]
