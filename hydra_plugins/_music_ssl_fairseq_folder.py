"""What happens as Python starts for a command that names the package.

`resolve` finds the folder where the package is installed, without importing it.

fairseq takes `--user-dir` for a path, and looks in the current folder, in its own and beside that.
So it finds a bare name after `pip install .`, which puts the package beside fairseq, but not after
`pip install -e .`, which leaves the package where it was cloned. `music_ssl_fairseq.pth`, installed
with the package, calls `resolve` when Python starts, if the command line names the package.

This file is outside of the package, because fairseq registers tasks and models of a user_dir only
if the package is not imported yet. The underscore keeps hydra from loading it as a plugin.
"""

import importlib.util
import os
import shlex
import sys
from difflib import get_close_matches
from types import TracebackType

PACKAGE = "music_ssl_fairseq"

_FAMILIES = ("music_hubert", "music2vec", "probing")  # of examples/


def package_dir() -> str:
    """Return the package's folder.

    Raises:
        ModuleNotFoundError: if it is not installed.
    """
    spec = importlib.util.find_spec(PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise ModuleNotFoundError(f"{PACKAGE} is not installed: run `pip install -e .`")
    return spec.submodule_search_locations[0]


def resolve(arguments: list[str]) -> None:
    """Replace the package's name by its folder where a command line gives it as user_dir.

    A package of that name in the current folder comes first, as in fairseq.

    Args:
        arguments: a program's name and arguments; changed in place.
    """
    if os.path.isfile(os.path.join(PACKAGE, "__init__.py")):
        return
    for i, argument in enumerate(arguments):
        key, equals, value = argument.rpartition("=")
        named = key in ("--user-dir", "common.user_dir") or arguments[i - 1] == "--user-dir"
        if named and value.rstrip("/") == PACKAGE:
            arguments[i] = f"{key}{equals}{package_dir()}"


def config_dirs(arguments: list[str]) -> list[str]:
    """Return the folders that a command line names with `--config-dir`."""
    return [
        argument.partition("=")[2] if "=" in argument else following
        for argument, following in zip(arguments, [*arguments[1:], ""], strict=True)
        if argument.partition("=")[0] in ("--config-dir", "-cd")
    ]


def is_ours(folder: str) -> bool:
    """Return whether a configuration folder is one of this package's."""
    try:
        with open(os.path.join(folder, "config.yaml"), encoding="utf-8") as handle:
            return PACKAGE in handle.read(65536)
    except (OSError, UnicodeDecodeError):
        return False


def begin_quietly(arguments: list[str]) -> None:
    """Prepare a `fairseq-hydra-train` of this package, before fairseq is imported.

    Its imports take seconds, in which Ctrl-C would end in a traceback, and print warnings that
    concern no user.

    Args:
        arguments: a program's name and arguments.
    """
    folders = config_dirs(arguments)
    if missing := [folder for folder in folders if not os.path.isdir(folder)]:
        _refuse_folder(arguments, missing[0])
    if any(map(is_ours, folders)) or "--help" in arguments:
        from hydra_plugins._music_ssl_fairseq_console import keep_for_the_log

        sys.excepthook = _end_quietly
        keep_for_the_log()


def _end_quietly(
    kind: type[BaseException], error: BaseException, trace: TracebackType | None
) -> None:
    if issubclass(kind, KeyboardInterrupt):
        print("stopped by SIGINT: nothing was trained", file=sys.stderr)
    else:
        sys.__excepthook__(kind, error, trace)


def _refuse_folder(arguments: list[str], folder: str) -> None:
    """End in two lines: no such folder, and the command with one that there is."""
    examples = os.path.join(os.path.dirname(package_dir()), "examples")
    near = get_close_matches(os.path.basename(folder.rstrip("/")), _FAMILIES, 1)
    there = os.path.join(examples, (near or _FAMILIES)[0])
    words = [word.replace(folder, there) for word in arguments[1:]]
    command = shlex.join(["fairseq-hydra-train", *words])
    hint = command if os.path.isdir(there) else "fairseq-hydra-train --help"
    print(f"error: --config-dir {folder}: no such folder\n{hint}", file=sys.stderr, flush=True)
    os._exit(1)  # Python is just starting: an exception would be reported as an error of its own
