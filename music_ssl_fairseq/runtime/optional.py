"""Import packages that only some commands need."""

from importlib import import_module
from pathlib import Path
from types import ModuleType

from music_ssl_fairseq.errors import InputError

_HERE = Path(__file__).parents[2]
SOURCE = str(_HERE) if (_HERE / "pyproject.toml").exists() and Path.cwd() != _HERE else "."
"""Folder of the repository, for `pip install -e`."""


def optional(module: str, extra: str) -> ModuleType:
    """Import `module`, which the extra called `extra` in pyproject.toml installs.

    Raises InputError if it is not installed, with the command that installs it.
    """
    try:
        return import_module(module)
    except ModuleNotFoundError:
        package = module.partition(".")[0]
        raise InputError(
            f"the package {package} is not installed; what needs it is installed by",
            f"pip install -e '{SOURCE}[{extra}]'",
        ) from None
