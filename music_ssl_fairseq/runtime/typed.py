"""The command of this process as its user typed it, to repeat it with a change in a message."""

import os
import shlex
import sys
from difflib import get_close_matches
from pathlib import Path


def typed() -> list[str]:
    """Return the words of the command: `python -m NAME ...`, or an installed script."""
    if "-m" in sys.orig_argv[1:3]:
        return ["python", *sys.orig_argv[sys.orig_argv.index("-m") :]]
    script = [sys.argv[0]] if sys.argv[0].endswith(".py") else [os.path.basename(sys.argv[0])]
    return [*(["python"] if sys.argv[0].endswith(".py") else []), *script, *sys.argv[1:]]


def with_option(option: str, value: object) -> str:
    """Return the command with another value of an option, or with that option as well."""
    words = typed()
    for i, word in enumerate(words):
        if word == option and i + 1 < len(words):
            words[i + 1] = str(value)
            return shlex.join(words)
        if word.startswith(f"{option}="):
            words[i] = f"{option}={value}"
            return shlex.join(words)
    return shlex.join([*words, option, str(value)])


def with_path(old: str, new: str) -> str:
    """Return the command with a path in it replaced, however it was written."""
    at = os.path.abspath(old)
    return shlex.join([new if os.path.abspath(word) == at else word for word in typed()])


def similar(path: str | os.PathLike) -> str:
    """Return the path beside a missing one whose name is most like its name; empty if none is."""
    path = Path(path)
    try:
        beside = os.listdir(path.parent)
    except OSError:
        return ""
    found = get_close_matches(path.name, beside, 1)
    return str(path.parent / found[0]) if found else ""


def look_around(path: str | os.PathLike) -> str:
    """Return the command that lists the nearest folder above a missing path."""
    folder = Path(path).parent
    while not folder.is_dir() and folder != folder.parent:
        folder = folder.parent
    return f"ls {shlex.quote(str(folder))}"


def music_folder() -> str:
    """Return a folder that a user's music may be in: one of the usual names, or this folder."""
    usual = (Path("music"), Path("Music"), Path.home() / "Music", Path.home() / "music")
    return str(next((folder for folder in usual if folder.is_dir()), Path(".")))
