"""Refuse a command of fairseq that does not say what to run, with a command that works.

Without a configuration, `fairseq-hydra-train` would train with fairseq's bare defaults, and end in
a traceback about the batch size. Without a task, `fairseq-validate` ends in one as well. Commands
that choose a task or model of fairseq without a file pass.
"""

import contextlib
import importlib.util
import os
import re
import shlex
import sys
from collections.abc import Sequence
from difflib import get_close_matches
from itertools import pairwise
from pathlib import Path

from hydra_plugins._music_ssl_fairseq_command import (
    LISTS_OF_ONE,
    PACKAGE,
    config_dirs,
    example,
    is_ours,
    shell_line,
    values,
)

_FAMILIES = ("music_hubert", "music2vec", "probing")  # of examples/
_OPTIONS = ("--config-dir", "-cd", "--config-name", "-cn")
_OF_OTHERS = re.compile(
    r"\+*(task|model)(@[^=]*|\._name)?=|hydra\.searchpath=|(--config-path|-cp)\b"
)
_NOT_TRAINING = re.compile(r"(--help|-h|--hydra-help|--version|--info|--shell-completion|-sc)\b")


def check_choice(arguments: list[str]) -> None:
    """Refuse a folder or configuration that is not there, or that is not named."""
    folders, names = config_dirs(arguments), values(arguments, "--config-name", "-cn")
    folder, name = (folders or [""])[-1], (names or ["config"])[-1].removesuffix(".yaml")
    if any(map(_NOT_TRAINING.match, arguments)):
        return
    for argument in arguments:
        option, *value = argument.split("=", 1)
        near = get_close_matches(option, _OPTIONS, 1, 0.8) if option.startswith("--") else []
        if near and near[0] != option and option != "--config-path":
            right = "=".join([*near, *value])
            words = [right if word == argument else word for word in arguments[1:]]
            _end_process([f"{option}: no such option"], ["fairseq-hydra-train", *words])
    if folder and not os.path.isdir(folder):
        problem = "a file, not a folder" if os.path.isfile(folder) else "no such folder"
        _refuse(f"--config-dir {folder}: {problem}", arguments, folder, names)
    elif any(map(_OF_OTHERS.match, arguments)):
        return
    elif _is_configuration(folder, name):
        _refuse_options(arguments, folder, name)
        _refuse_missing_bases(folder, name)
    elif not folder:
        _refuse("no --config-dir", arguments, folder, names)
    elif os.path.isabs(name):
        message = f"--config-name {name}: a path; expected a name within --config-dir"
        _refuse(message, arguments, folder, names)
    elif there := _configurations(folder):
        listed = "" if is_ours(folder) else f"; there are {', '.join(there)}"
        message = f"{folder}/{name}.yaml: no such configuration{listed}"
        _refuse(message, arguments, folder, names)
    else:
        _refuse(f"--config-dir {folder}: no configuration in it", arguments, folder, names)


def _refuse_options(arguments: list[str], folder: str, name: str) -> None:
    """Refuse `--max-update 5`, an option of fairseq-train that is a setting here."""
    for i, word in enumerate(arguments[1:], 1):
        option, is_one_word, value = word.partition("=")
        key = _setting(option[2:].replace("-", "_"), folder, name) if word[:2] == "--" else ""
        if not key:
            continue
        after = i + 1
        if not is_one_word:
            has_value = after < len(arguments) and not re.match(r"-|[\w.]+=", arguments[after])
            value = arguments[after] if has_value else "true"
            after += has_value
        value = f"[{value}]" if key in LISTS_OF_ONE else value
        words = [*arguments[1:i], f"{key}={value}", *arguments[after:]]
        _end_process([f"{option}: a setting here, {key}"], ["fairseq-hydra-train", *words])


def _refuse_missing_bases(folder: str, name: str) -> None:
    """Refuse a file whose `defaults:` name a configuration of ours that its folder lacks."""
    text = ""
    with contextlib.suppress(OSError, UnicodeDecodeError):
        text = Path(folder, f"{name}.yaml").read_text("utf-8")
    found = re.search(r"^defaults: *\n((?: *-.*\n)+)", text, re.MULTILINE)
    for base in re.findall(r"- *(\w+) *$", found[1] if found else "", re.MULTILINE):
        examples = (os.path.abspath(example(family)) for family in _FAMILIES)
        there = [at for at in examples if os.path.isfile(os.path.join(at, f"{base}.yaml"))]
        named = [at for at in there if os.path.basename(at) in text]
        ours = named or [at for at in there if base != "config"]  # fairseq has a config.yaml, too
        if ours and not os.path.isfile(os.path.join(folder, f"{base}.yaml")):
            _end_process(
                [f"{folder}/{name}.yaml: builds on {base}, which must be in its folder: link it"],
                ["cp", "-rsn", os.path.join(ours[0], "."), folder],
            )


def _setting(key: str, folder: str, name: str) -> str:
    """Return `group.key` of a setting that the configuration's file or config.yaml has, or ""."""
    group = ""
    for file in (f"{name}.yaml", "config.yaml"):
        with contextlib.suppress(OSError, UnicodeDecodeError):
            for line in Path(folder, file).read_text("utf-8").splitlines():
                found = re.match(r"( *)(\w+):", line)
                if found and not found[1]:
                    group = found[2]
                elif found and found[2] == key and len(found[1]) == 2 and group != "hydra":
                    return f"{group}.{key}"
    return ""


def check_task(arguments: list[str]) -> None:
    """Refuse a `fairseq-train` with a task of this package alone."""
    task = (values(arguments, "--task") or [""])[-1]
    if task.startswith("music") and not values(arguments, "--user-dir"):
        family = next((family for family in _FAMILIES if family in task), _FAMILIES[0])
        name = "config" if family == "probing" else "short"
        message = f"--task {task}: its models are trained by fairseq-hydra-train"
        _end_process([message], _command(example(family), name))


def check_validation(arguments: list[str]) -> None:
    """Refuse a `fairseq-validate` without --task, or with a task of this package alone."""
    tasks, folders = values(arguments, "--task"), values(arguments, "--user-dir")
    known = bool(folders) or not any(task.startswith("music") for task in tasks)
    if (tasks and known) or {"--help", "-h"} & set(arguments):
        return
    missing = [*["--task"] * (not tasks), *["--user-dir"] * (not folders)]
    words = [] if folders else ["--user-dir", PACKAGE]
    words += [] if tasks else ["--task", _task_of(arguments)]
    sizes = ("--batch-size", "--max-sentences", "--max-tokens")
    words += [] if values(arguments, *sizes) else ["--batch-size", "8"]
    _end_process([f"{' and '.join(missing)} missing"], ["fairseq-validate", *arguments[1:], *words])


def _task_of(arguments: list[str]) -> str:
    """Return the task name: `music_probing` if the data folder has a task.json.

    Otherwise it is the task in the run's `.hydra/config.yaml`, by default musicHuBERT's.
    """
    if any(os.path.isfile(os.path.join(word, "task.json")) for word in arguments[1:]):
        return "music_probing"
    for path in values(arguments, "--path"):
        run = os.path.dirname(os.path.dirname(os.path.abspath(path)))
        with contextlib.suppress(OSError, UnicodeDecodeError):
            settings = Path(run, ".hydra", "config.yaml").read_text("utf-8")
            if found := re.search(r"^task:\n  _name: (\w+)", settings, re.MULTILINE):
                return found[1]
    return "music_hubert_pretraining"


def _is_configuration(folder: str, name: str) -> bool:
    """Return whether a configuration exists. fairseq's own config.yaml does not count."""
    if os.path.isabs(name):
        return False
    fairseq = importlib.util.find_spec("fairseq")
    theirs = os.path.join(os.path.dirname((fairseq and fairseq.origin) or ""), "config")
    places = ([folder] if folder else []) + ([theirs] if name != "config" else [])
    return any(os.path.isfile(os.path.join(place, f"{name}.yaml")) for place in places)


def _configurations(folder: str) -> list[str]:
    files = (file for file in os.listdir(folder) if file.endswith(".yaml"))
    return sorted({file.removesuffix(".yaml") for file in files} - {"run_folder"})


def _other_arguments(arguments: Sequence[str]) -> list[str]:
    """Return the arguments, without the program, that do not choose a configuration."""
    return [
        argument
        for before, argument in pairwise(arguments)
        if before not in _OPTIONS and argument.partition("=")[0] not in _OPTIONS
    ]


def _command(folder: str, name: str) -> list[str]:
    chosen = [] if name == "config" else ["--config-name", name]
    return ["fairseq-hydra-train", "--config-dir", folder, *chosen]


def _refuse(message: str, arguments: list[str], folder: str, names: list[str]) -> None:
    """End in three lines: the mistake, the configurations of a folder, and a command with one."""
    others = _other_arguments(arguments)
    for path in (folder, *names, *others):
        stem = path.removesuffix(".yaml")
        if os.path.isfile(f"{stem}.yaml"):
            chosen = _command(os.path.dirname(path) or ".", os.path.basename(stem))
            _end_process([message], [*chosen, *(other for other in others if other != path)])
    last = os.path.basename(os.path.abspath(folder)) if folder else ""
    at = {family: example(family) for family in _FAMILIES}
    if folder and is_ours(folder):
        beside = os.path.join(folder, os.pardir)
        at = {f: os.path.normpath(os.path.join(beside, f)) for f in _FAMILIES} | {last: folder}
    there = {family: _configurations(at[family]) for family in at if os.path.isdir(at[family])}
    if not there:
        message += "; the configurations are in examples/ of a clone of music_ssl_fairseq"
        _end_process([message], ["fairseq-hydra-train", "--help"])
    wanted = names[-1].removesuffix(".yaml") if names else ""
    like = get_close_matches(wanted, [name for names in there.values() for name in names], 1)
    probing = any(re.match(r"model\.upstream=", argument) for argument in others)
    exact = [family for family in there if wanted in there[family]]
    family = (
        get_close_matches(last, exact or there, 1)
        or exact
        or ["probing"] * probing
        or [family for family in there if set(like) & set(there[family])]
        or list(there)
    )[0]
    is_named = "short" in there[family] and (wanted or not folder)
    usual = "short" if is_named else "config"
    name = (get_close_matches(wanted, there[family], 1) or [usual])[0]
    rest = " and ".join(other for other in there if other != family)
    elsewhere = f"; others are in {rest} beside it" if rest else ""
    listing = f"configurations of {at[family]}: {', '.join(there[family])}{elsewhere}"
    _end_process([message, listing], [*_command(at[family], name), *others])


def _end_process(lines: list[str], command: list[str]) -> None:
    text = "\n".join([*lines, shell_line(shlex.join(command))])
    print(f"error: {text}", file=sys.stderr, flush=True)
    # Python may be just starting: an exception would be reported as an error of its own.
    os._exit(1)
