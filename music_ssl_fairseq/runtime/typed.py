"""The command of this process as its user typed it, to repeat it with a change in a message."""

import os
import re
import shlex
import sys
from collections.abc import Iterable
from difflib import get_close_matches
from itertools import count
from pathlib import Path

from hydra_plugins._music_ssl_fairseq_folder import with_settings


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


def with_word(wrong: str, right: Iterable[str]) -> str:
    """Return the command with the most similar of the right words; empty if none is similar."""
    near = get_close_matches(wrong, list(right), 1)
    pattern = rf"(?<![\w-]){re.escape(wrong)}(?![\w-])"
    words = [re.sub(pattern, near[0], word) for word in typed()] if near else []
    return shlex.join(words) if words != typed() else ""


def beside(path: str | os.PathLike) -> str:
    """Return the path with the first number at its end under which there is nothing."""
    relative = os.path.relpath(path)
    path = os.fspath(path) if relative.startswith("..") else relative
    return next(new for n in count(2) if not os.path.exists(new := f"{path}-{n}"))


def with_setting(*settings: str) -> str:
    """Return the command of fairseq with these `key=value` in place of what was given for them.

    `key=` removes one. Empty in programs other than fairseq-hydra-train.
    """
    if not os.path.basename(sys.argv[0]).startswith("fairseq-"):
        return ""
    return shlex.join(with_settings(typed(), *settings))


def with_path(old: str | os.PathLike, new: str) -> str:
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
