"""The command of this process as its user typed it, to repeat it with a change in a message."""

import os
import re
import shlex
import sys
from collections.abc import Iterable
from difflib import get_close_matches
from itertools import count
from pathlib import Path

from hydra_plugins._music_ssl_fairseq_command import shell_line, typed, with_settings

_TEXTS = (".csv", ".tsv", ".txt", ".json", ".jsonl", ".yaml", ".log")


def with_option(option: str, value: object) -> str:
    """Return the command with another value of an option, or with that option as well."""
    return with_options({option: value})


def with_other(option: str, value: object) -> str:
    """Return the command with another value of an option; empty if it has no such option."""
    given = any(word.partition("=")[0] == option for word in typed())
    return with_option(option, value) if given else ""


def with_options(changes: dict[str, object]) -> str:
    """Return the command with other values of options. None removes an option."""
    words = typed()
    for option, value in changes.items():
        at = next((i for i, w in enumerate(words) if w.partition("=")[0] == option), len(words))
        joined = "=" in "".join(words[at : at + 1])
        new = [f"{option}={value}"] if joined else [option, str(value)]
        words[at : at + (1 if joined else 2)] = [] if value is None else new
    return shlex.join(words)


def with_flag(option: str) -> str:
    """Return the command with an option that takes no value."""
    return shlex.join([*typed(), option])


def with_word(wrong: str, right: Iterable[str]) -> str:
    """Return the command with the most similar of the right words; empty if none is similar."""
    near = get_close_matches(wrong.lower(), list(right), 1)
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

    `key=` removes one. Other programs have settings as well (`probe --set`): those that were given
    are replaced, and without any the command is empty.
    """
    words = typed()
    if os.path.basename(sys.argv[0]).startswith("fairseq-"):
        return shlex.join(with_settings(*settings))
    new = {setting.partition("=")[0]: setting for setting in settings if setting[-1] != "="}
    right = [new.get(word.partition("=")[0], word) for word in words]
    return shlex.join(right) if right != words else ""


def with_path(old: str | os.PathLike, new: str | os.PathLike) -> str:
    """Return the command with a path in it replaced, however it was written; empty without one."""
    at, words = os.path.abspath(old), []
    for word in typed():
        option, equals, value = word.rpartition("=")
        same = value and os.path.abspath(value) == at
        words.append(f"{option}{equals}{new}" if same else word)
    return shlex.join(words) if words != typed() else ""


def similar(path: str | os.PathLike) -> str:
    """Return a missing path with the most similar names that are there; empty if none is."""
    path = Path(path)
    found = Path(path.anchor)
    for name in path.relative_to(found).parts:
        try:
            there = [name] if os.path.exists(found / name) else os.listdir(found)
        except OSError:  # no folder, or one that cannot be read
            return ""
        near = get_close_matches(name, there, 1)
        if not near:
            return ""
        found = found / near[0]
    return str(found)


def corrected(path: str | os.PathLike) -> str:
    """Return the command with the path most similar to a missing one, or one that looks around."""
    return with_path(path, similar(path) or path) or look_around(path)


def look_around(path: str | os.PathLike) -> str:
    """Return the command that lists the nearest folder above a missing path."""
    folder = Path(path).parent
    while not folder.is_dir() and folder != folder.parent:
        folder = folder.parent
    return f"ls {shlex.quote(str(folder))}"


def with_command(message: str) -> str:
    """Return the lines of an error, with a command below if one helps and none is there.

    It is one that the message has in quotes, or shows the line, file or folder that the message
    begins with. Messages about options and settings say what to give.
    """
    if "\n" in message:
        return message
    quoted = re.search(r"(?:run|with) `((?:pip|python|git) [^`]+)`", message)
    colons = re.finditer(": ", message)
    shown = (_show(message[: at.start()], message[at.end() :]) for at in colons)
    command = quoted[1] if quoted else next(filter(None, shown), "")
    return f"{message}\n{shell_line(command)}" if command else message


def _show(subject: str, reason: str) -> str:
    """Return the command that shows a line, file or folder; empty if the subject is no path."""
    name, _, line = subject.partition(", line ")
    if re.match(r"https?://", name):
        shard = re.sub(r":\d+:\d+$", "", name)
        return f"curl -I {shlex.quote(shard)}"
    path = shlex.quote(name)
    if os.path.isdir(name):
        return f"ls {path}"
    if os.path.isfile(name):
        head = "head -n 3" if name.endswith(_TEXTS) else "ls -l"
        return f"sed -n {line}p {path}" if line.isdigit() else f"{head} {path}"
    named = os.sep in name or re.match(r"no such (file|folder)", reason)
    is_path = named and not re.search(r"^-|^hf:|://|\s-|=", name)
    return look_around(name) if is_path else ""


def music_folder() -> str:
    """Return a folder that a user's music may be in: one of the usual names, or this folder."""
    usual = (Path("music"), Path("Music"), Path.home() / "Music", Path.home() / "music")
    return str(next((folder for folder in usual if folder.is_dir()), Path(".")))


def usual_model() -> str:
    """Return a model that this command can take here: the newest run, or a front end, or none."""
    takes_front_ends = {"map", "probe"} & set(typed()) or "model.upstream=" in "".join(typed())
    return newest_run() or ("mfcc" if takes_front_ends else "")


def made_tasks() -> list[str]:
    """Return the folders of probing tasks below probing/, to name in a command."""
    return sorted(str(file.parent) for file in Path("probing").glob("*/task.json"))


def newest_run() -> str:
    """Return the newest pre-training run below runs/, to name in a command; empty without one."""
    found = Path("runs").glob("music*/*/checkpoints/checkpoint_best.pt")
    newest = max(found, key=lambda file: file.stat().st_mtime, default=None)
    return str(newest.parents[1]) if newest else ""
