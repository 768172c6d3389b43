"""Say in one line why torch cannot safely load a file."""

import contextlib
import os
import pickle
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path

from music_ssl_fairseq.errors import InputError
from music_ssl_fairseq.runtime.user_command import corrected, with_path

_ZIP = b"PK\x03\x04"
_PICKLE = b"\x80"
_DAMAGED: tuple[type[Exception], ...] = (
    RuntimeError, EOFError, OSError, ValueError, KeyError, AttributeError,
    TypeError, IndexError, AssertionError, OverflowError, MemoryError, zipfile.BadZipFile,
)  # fmt: skip
"""Errors of unpickling damaged bytes."""
GIT_LFS = b"version https://git-lfs"
AGAIN = ": copy or download it again"
"""Advice about a damaged file."""


def check_form(path: Path) -> bool:
    """Check a file's beginning; return whether it has torch's newer (zip) format.

    Raises InputError if there is no such file, or torch did not write it.
    """
    head = _first_bytes(path)
    zipped = head.startswith(_ZIP)
    if not zipped and not head.startswith(_PICKLE):
        raise InputError(
            f"{path}: not a checkpoint; {_describe_beginning(head)}", with_another_checkpoint(path)
        )
    if zipped and not zipfile.is_zipfile(path):
        raise InputError(f"{path}: truncated or damaged{AGAIN}", with_another_checkpoint(path))
    return zipped


@contextlib.contextmanager
def utf8_name(path: Path) -> Iterator[str]:
    """Yield a name by which torch and safetensors open a file: they take UTF-8 alone."""
    try:
        os.fspath(path).encode()
        yield os.fspath(path)
    except UnicodeEncodeError:
        with path.open("rb") as file:
            yield f"/dev/fd/{file.fileno()}"


@contextlib.contextmanager
def one_line_refusals(path: Path) -> Iterator[None]:
    """Turn the errors of `torch.load` with `weights_only` into one line.

    torch's own text has twenty lines and recommends to turn `weights_only` off.

    Raises InputError if the file is damaged, or asks for anything that could run code.
    """
    try:
        yield
    except pickle.UnpicklingError as error:
        reason = str(error)
        asked = re.search(r"(?:GLOBAL|[Uu]nsupported class) (\S+)", reason)
        what = f"it asks for {asked[1]}" if asked else "it holds more than tensors and settings"
        raise InputError(
            f"{path}: refused, because unpickling it could run code ({what}); if you trust where "
            "it comes from, open it there and store its tensors and settings alone"
        ) from None
    except InputError:
        raise
    except _DAMAGED as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise InputError(
            f"{path}: truncated or damaged ({reason[:120]}){AGAIN}", with_another_checkpoint(path)
        ) from None


def with_another_checkpoint(path: Path) -> str:
    """Return the command with the newest other checkpoint of the run; empty if there is none."""
    others = [file for file in path.parent.glob("checkpoint*.pt") if file != path]
    whole = [file for file in others if zipfile.is_zipfile(file)]
    if not whole:
        return ""
    newest = os.path.relpath(max(whole, key=lambda file: file.stat().st_mtime))
    given = (with_path(old, newest) for old in (path, path.parent, path.parent.parent))
    return next(filter(None, given), "")


def _first_bytes(path: Path) -> bytes:
    if path.exists() and not path.is_file():
        raise InputError(f"{path}: not a regular file")
    try:
        with path.open("rb") as file:
            return file.read(64)
    except FileNotFoundError:
        again = corrected(path)
        page = re.match(r"https?:/huggingface\.co/([\w.-]+/[\w.-]+)", str(path))
        if page:
            again = with_path(path, f"hf:{page[1]}")
        elif len(path.parts) == 2 and not path.parent.exists() and again.startswith("ls "):
            again = with_path(path, f"hf:{path}") or again  # USER/NAME, as transformers takes
        raise InputError(f"{path}: no such checkpoint", again) from None
    except OSError as error:
        raise InputError(f"{path}: {error.strerror or error}") from None


def _describe_beginning(head: bytes) -> str:
    if not head:
        return "the file is empty (0 bytes)"
    if head.startswith(GIT_LFS):
        return "it is a Git LFS pointer: fetch the file itself with `git lfs pull`"
    if all(byte >= 9 for byte in head):
        text = head.splitlines()[0][:40].decode("utf-8", "backslashreplace")
        return f"it is text that begins with {text!r}"
    return "torch did not write it"
