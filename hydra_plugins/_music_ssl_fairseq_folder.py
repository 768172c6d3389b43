"""Where the package is installed, found without importing it.

fairseq takes `--user-dir` for a path: it looks here, in its own folder and beside that.
So a bare name is found after `pip install .`, which puts the package beside fairseq, but not after
`pip install -e .`, which leaves it where it was cloned. `music_ssl_fairseq.pth`, which is installed
with the package, calls `resolve` as Python starts, if the command line names the package.

Not within the package, because fairseq imports tasks and models of a user_dir only if the package
is not yet imported; and hydra does not take it for a plugin, because of the underscore.
"""

import importlib.util
import os

PACKAGE = "music_ssl_fairseq"


def package_dir() -> str:
    """The package's folder.

    Raises:
        ModuleNotFoundError: if it is not installed.
    """
    spec = importlib.util.find_spec(PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise ModuleNotFoundError(f"{PACKAGE} is not installed: run `pip install -e .`")
    return spec.submodule_search_locations[0]


def resolve(arguments: list[str]) -> None:
    """Replace the package's name by its folder where a command line gives it as user_dir.

    Changes nothing where the current folder holds a package of that name: fairseq takes that one.

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
