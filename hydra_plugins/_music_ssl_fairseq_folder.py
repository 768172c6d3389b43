"""Find the folder where the package is installed, without importing it.

fairseq takes `--user-dir` for a path, and looks in the current folder, in its own and beside that.
So it finds a bare name after `pip install .`, which puts the package beside fairseq, but not after
`pip install -e .`, which leaves the package where it was cloned. `music_ssl_fairseq.pth`, installed
with the package, calls `resolve` when Python starts, if the command line names the package.

This file is outside of the package, because fairseq registers tasks and models of a user_dir only
if the package is not imported yet. The underscore keeps hydra from loading it as a plugin.
"""

import importlib.util
import os

PACKAGE = "music_ssl_fairseq"


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
