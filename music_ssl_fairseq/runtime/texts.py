"""Read text and JSON that people or other programs wrote, and quote it in messages.

A file may be truncated, of another encoding, or deeper and larger than it should be. Every reader
here raises an `InputError` of one line that names file and reason.
"""

import json
import os
import shlex
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from music_ssl_fairseq.errors import InputError, one_line
from music_ssl_fairseq.runtime.user_command import corrected

MAX_BYTES = 64 << 20
"""Bytes of the largest text file that is read."""


def read_text(
    file: str | os.PathLike, way_out: str = "", largest: int = MAX_BYTES, errors: str = "strict"
) -> str:
    """Read a UTF-8 file whole, without its byte order mark.

    Raises InputError if it cannot be read, is too large, is not UTF-8, or holds NUL bytes.

    Args:
        way_out: what to do about a file that cannot be used, for the message.
        largest: bytes it may have.
        errors: what to do about bytes that are not UTF-8, as of `bytes.decode`.
    """
    file = Path(file)
    hint = f"; {way_out}" if way_out else ""
    try:
        with file.open("rb") as handle:
            content = handle.read(largest + 1)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        where = corrected(file) if isinstance(error, FileNotFoundError) and not hint else ""
        raise InputError(f"{file}: cannot be read ({reason}){hint}", where) from None
    if len(content) > largest:
        raise InputError(f"{file}: larger than {largest >> 20} MB, so not what it should be{hint}")
    if content.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise InputError(f"{file}: UTF-16 text: save it as UTF-8{hint}", _to_utf8(file, "UTF-16"))
    if content.startswith(b"PK\3\4"):
        message = f"{file}: a workbook or archive, not text: save its table as CSV{hint}"
        raise InputError(message, shlex.join(["ls", "-l", str(file)]))
    if b"\0" in content:
        raise InputError(f"{file}: holds NUL bytes, so it is damaged or not UTF-8 text{hint}")
    try:
        return content.decode("utf-8-sig", errors)
    except UnicodeDecodeError as error:
        message = f"{file}: not UTF-8 text (byte {error.start}){hint}"
        raise InputError(message, "" if hint else _to_utf8(file, "CP1252")) from None


def _to_utf8(file: Path, encoding: str) -> str:
    target = file.with_suffix(f".utf8{file.suffix}")
    return shlex.join(["iconv", "-f", encoding, "-t", "UTF-8", str(file), "-o", str(target)])


def read_json(
    file: str | os.PathLike,
    way_out: str = "",
    largest: int = MAX_BYTES,
    object_hook: Callable[[dict[str, Any]], Any] | None = None,
) -> Any:
    """Read a JSON file; see `read_text` and `json.loads` for the arguments.

    Raises InputError as `read_text`, or if it is not JSON, is nested too deeply, has a name twice,
    or names characters that no file can hold.
    """
    text = read_text(file, way_out, largest)
    hint = f"; {way_out}" if way_out else ""
    try:
        contents = json.loads(text, object_pairs_hook=partial(_object, object_hook))
        if "\\ud" in text.lower():  # half a character outside of the basic plane, perhaps
            json.dumps(contents, ensure_ascii=False).encode()
    except RecursionError:
        raise InputError(f"{file}: nested too deeply{hint}") from None
    except UnicodeEncodeError:
        raise InputError(f"{file}: has half a character (a lone surrogate){hint}") from None
    except ValueError as error:
        raise InputError(f"{file}: not JSON ({error}){hint}") from None
    return contents


def _object(hook: Callable | None, pairs: list[tuple[str, Any]]) -> Any:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"{quoted(max(names, key=names.count))} is twice in one object")
    return hook(found) if hook else found


def read_object(file: str | os.PathLike, way_out: str = "") -> dict[str, Any]:
    """Read a JSON file that holds an object.

    Raises InputError as `read_json`, or if it holds something else.
    """
    contents = read_json(file, way_out)
    if not isinstance(contents, dict):
        hint = f"; {way_out}" if way_out else ""
        raise InputError(f"{file}: expected a JSON object, found {quoted(contents)}{hint}")
    return contents


def quoted(value: object) -> str:
    """Return a value as a message can show it: one line of at most 60 characters."""
    return one_line(repr(value), 60)
