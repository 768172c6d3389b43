"""Import packages that only some commands need."""

from importlib import import_module
from types import ModuleType

from music_ssl_fairseq.errors import InputError


def optional(module: str, extra: str) -> ModuleType:
    """Import `module`, which the extra called `extra` in pyproject.toml installs.

    Raises:
        InputError: if it is not installed, with the command that installs it.
    """
    try:
        return import_module(module)
    except ModuleNotFoundError:
        package = module.partition(".")[0]
        raise InputError(
            f"the package {package} is not installed: run `pip install -e '.[{extra}]'` in the "
            "folder of music_ssl_fairseq"
        ) from None
