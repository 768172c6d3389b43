"""Prepare Python for a command of fairseq that names the package, when Python starts.

`resolve` finds the folder where the package is installed, without importing it. `prepare_command`
refuses wrong commands before fairseq's imports take seconds.

fairseq takes `--user-dir` for a path, and looks in the current folder, in its own and beside that.
So it finds a bare name after `pip install .`, which puts the package beside fairseq, but not after
`pip install -e .`, which leaves the package where it was cloned. `music_ssl_fairseq.pth`, installed
with the package, calls `resolve` when Python starts, if the command line names the package.
"""

import os
import re
import shlex
import sys
from itertools import pairwise
from types import TracebackType

from hydra_plugins._music_ssl_fairseq_choice import check_choice, check_task, check_validation
from hydra_plugins._music_ssl_fairseq_command import (
    PACKAGE,
    config_dirs,
    is_ours,
    package_dir,
    shell_line,
    typed,
    values,
)

_WITH_VALUES = (
    "--config-dir", "-cd", "--config-name", "-cn", "--config-path", "-cp",
    "--package", "-p", "--cfg", "-c",
)  # fmt: skip
"""Options of hydra whose next word is their value."""


def resolve(arguments: list[str]) -> None:
    """Replace the package's name by its folder where a command line gives it as user_dir, in place.

    A package of that name in the current folder comes first, as in fairseq.
    """
    if os.path.isfile(os.path.join(PACKAGE, "__init__.py")):
        return
    for i, argument in enumerate(arguments):
        key, equals, value = argument.rpartition("=")
        named = key in ("--user-dir", "common.user_dir") or arguments[i - 1] == "--user-dir"
        if named and value.rstrip("/") == PACKAGE:
            arguments[i] = f"{key}{equals}{package_dir()}"


def put_settings_last(arguments: list[str]) -> None:
    """Move settings behind options, in place: hydra refuses a command with options between them."""
    settings = [
        word
        for before, word in pairwise(arguments)
        if re.match(r"~|[+\w.@/:]+=", word) and before not in _WITH_VALUES
    ]
    options = arguments[1:]
    for word in settings:
        options.remove(word)
    arguments[1:] = [*options, *settings]


def prepare_command(arguments: list[str]) -> None:
    """Prepare a training or validation of fairseq's, before fairseq is imported.

    Its imports take seconds, in which Ctrl-C would end in a traceback, and print warnings that
    concern no user.
    """
    if os.path.basename(arguments[0]) == "fairseq-train":
        return check_task(arguments)
    if os.path.basename(arguments[0]) == "fairseq-validate":
        check_validation(arguments)
        if any(PACKAGE in folder for folder in values(arguments, "--user-dir")):
            sys.excepthook = _end_quietly
        return
    names = values(arguments, "--config-name", "-cn")  # without their suffix, as runs are named
    arguments[:] = [a.removesuffix(".yaml") if a.split("=")[-1] in names else a for a in arguments]
    check_choice(arguments)
    put_settings_last(arguments)
    if any(map(is_ours, config_dirs(arguments))) or "--help" in arguments:
        from hydra_plugins._music_ssl_fairseq_console import keep_for_the_log

        sys.excepthook = _end_quietly
        keep_for_the_log()


begin_quietly = prepare_command
"""Its name in a music_ssl_fairseq.pth that was installed before."""


def _end_quietly(
    kind: type[BaseException], error: BaseException, trace: TracebackType | None
) -> None:
    if issubclass(kind, KeyboardInterrupt):
        done = "scored" if "fairseq-validate" in sys.argv[0] else "trained"
        print(f"stopped by SIGINT: nothing was {done}; to begin again, run", file=sys.stderr)
        print(shell_line(shlex.join(typed())), file=sys.stderr)
    else:
        sys.__excepthook__(kind, error, trace)
