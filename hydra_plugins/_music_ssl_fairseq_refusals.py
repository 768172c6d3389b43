"""Refuse a misspelt configuration or setting in two lines: what is wrong, and a command that works.

hydra prints its search path, or fairseq's stack. This file is outside of the package, because
fairseq registers tasks of a user_dir only if the package is not imported yet.
"""

import functools
import os
import re
import shlex
import sys
from collections.abc import Sequence
from difflib import get_close_matches
from typing import Any, NoReturn

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from hydra_plugins._music_ssl_fairseq_folder import is_ours


def _refuse(message: str, command: Sequence[str]) -> NoReturn:
    """End in two lines: what is wrong, and a command that works."""
    print(f"error: {message}\n{shlex.join(command)}", file=sys.stderr)
    raise SystemExit(1)


def _typed() -> list[str]:
    """Return the words of this command."""
    return [os.path.basename(sys.argv[0]), *sys.argv[1:]]


def _with_word(old: str, new: str) -> list[str]:
    return [word.replace(old, new) for word in _typed()]


def settings(folder: str, name: str) -> set[str]:
    """Return the dotted names of a configuration's settings, with those of fairseq."""
    from fairseq.dataclass.configs import FairseqConfig

    found = {
        f"{group}.{key}"
        for group, value in vars(FairseqConfig()).items()
        for key in getattr(value, "__dict__", {})
    }
    config = OmegaConf.to_container(OmegaConf.load(os.path.join(folder, f"{name}.yaml")))
    if isinstance(config, dict):
        groups = {str(group): value for group, value in config.items() if isinstance(value, dict)}
        found |= {f"{group}.{key}" for group, value in groups.items() for key in value}
        for base in config.get("defaults", []):
            if base not in ("_self_", "run_folder"):
                found |= settings(folder, base)
    return found


def _compose(hydra: Any, original: Any, *args: Any, **kwargs: Any) -> Any:
    """Compose the configuration; say in two lines what cannot be overridden."""
    from hydra._internal.utils import get_args_parser
    from hydra.errors import ConfigCompositionException

    try:
        return original(hydra, *args, **kwargs)
    except ConfigCompositionException as error:
        given, _ = get_args_parser().parse_known_args()
        folder, name = given.config_dir, (given.config_name or "config").removesuffix(".yaml")
        found = re.match(r"Could not override '([^']+)'", str(error))
        if found is None or not folder or not is_ours(folder):
            raise
        key, known = found[1], settings(folder, name)
        near = get_close_matches(key, known, 1)
        listing = ["fairseq-hydra-train", "--config-dir", folder, "--config-name", name]
        _refuse(
            f"{key}: no such setting" + (f"; {near[0]} is one" if near else "; there are"),
            _with_word(key, near[0]) if near else [*listing, "--cfg", "job"],
        )


@functools.cache
def say_what_cannot_be_set() -> None:
    """Let hydra and fairseq refuse a setting, or its value, in two lines."""
    from fairseq_cli import hydra_train, train
    from hydra._internal.hydra import Hydra

    hydra: Any = Hydra
    hydra.compose_config = functools.partialmethod(_compose, hydra.compose_config)
    for module in (hydra_train, train):
        module.add_defaults = functools.partial(_add_defaults, module.add_defaults)


def _add_defaults(original: Any, config: Any) -> None:
    """Add fairseq's defaults, which checks the types of values."""
    try:
        original(config)
    except OmegaConfBaseException as error:
        key, reason = str(error.full_key), str(error).splitlines()[0]
        given = [word for word in sys.argv if re.match(rf"\+*[\w.]*\b{re.escape(key)}=", word)]
        _refuse(
            f"{given[0] if given else key}: {reason}; without it the command runs",
            [word for word in _typed() if word not in given],
        )
