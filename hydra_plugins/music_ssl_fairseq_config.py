"""Let `fairseq-hydra-train --config-dir DIR` find DIR/config.yaml and this package.

fairseq ships its own `config.yaml`, and hydra looks there before `--config-dir`: without this
plugin DIR/config.yaml is never read, and training ends in "Must specify batch size". fairseq also
registers its defaults under the name of `--config-name`, and hydra lays them over the config that a
variant builds on: the variant would lose most of it.

hydra loads the plugin in every program of the environment, so it imports nothing of the package,
and acts only if DIR/config.yaml names this package.
"""

import hashlib
import json
import os
import re
import sys
from collections.abc import Sequence

from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.config_store import ConfigStore
from hydra.plugins.search_path_plugin import SearchPathPlugin
from omegaconf import OmegaConf

from hydra_plugins._music_ssl_fairseq_choice import check_choice
from hydra_plugins._music_ssl_fairseq_command import PACKAGE, is_ours, package_dir
from hydra_plugins._music_ssl_fairseq_folder import prepare_command
from hydra_plugins._music_ssl_fairseq_refusals import patch_refusals


def _slug(path: str) -> str:
    """Turn a checkpoint's path into part of a folder's name: its last three telling parts."""
    parts = re.sub(r"\.\w{1,11}$", "", str(path)).replace(":", "/").split("/")
    named = [part for part in parts if part not in ("", ".", "..", "runs", "checkpoints")]
    prefix = ["random"] if str(path).startswith("random:") and len(named) > 3 else []
    return re.sub(r"[^\w.+-]", "_", "_".join([*prefix, *named[-3:]])) or "missing"


def _task_name(folder: str) -> str:
    """Return a task's name from its task.json, or else from its folder, as a folder's name."""
    try:
        with open(os.path.join(folder, "task.json"), encoding="utf-8") as handle:
            name = json.load(handle)["name"]
    except (OSError, ValueError, KeyError, TypeError):
        name = os.path.basename(os.path.abspath(folder))
    return re.sub(r"[^\w.+-]+", "_", str(name))[:100]


def _swept() -> set[str] | None:
    """Return the settings that this command's sweep varies; None if its command line has none.

    A sweep may also be defined in a file, or run in a process with another command line.
    """
    from hydra._internal.utils import get_args_parser
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    try:
        given, _ = get_args_parser().parse_known_args()
        overrides = OverridesParser.create().parse_overrides(given.overrides)
    except HydraException:
        return None
    found = {override.key_or_group for override in overrides if override.is_sweep_override()}
    return found or None


def _sweep_name(overrides: Sequence[str], *left_out: str) -> str:
    """Name a sweep's run by its settings, as part of a folder's name: `_mask_prob-0.5_lr-0.001`.

    Args:
        overrides: all overrides of this run.
        left_out: settings that the folder's name has already.
    """
    swept = _swept()
    pairs = sorted(override.lstrip("+~").partition("=")[::2] for override in overrides)
    chosen = [
        (key, value)
        for key, value in pairs
        if key not in left_out and (swept is None or key in swept)
    ]
    short = [key.rpartition(".")[2] for key, _ in chosen]
    names = [
        key.replace(".", "_") if short.count(last) > 1 else last
        for (key, _), last in zip(chosen, short, strict=True)
    ]
    text = "".join(
        f"_{name}-{_value(value)}" for name, (_, value) in zip(names, chosen, strict=True)
    )
    if len(text) <= 120:
        return text
    return f"{text[:100]}_{hashlib.sha256(repr(chosen).encode()).hexdigest()[:8]}"


def _value(text: str) -> str:
    if "/" in text:
        return _slug(text)
    return re.sub(r"[^\w.+-]+", "_", text).strip("_")


OmegaConf.register_new_resolver(f"{PACKAGE}_dir", package_dir, replace=True)
OmegaConf.register_new_resolver(f"{PACKAGE}_slug", _slug, replace=True)
OmegaConf.register_new_resolver(f"{PACKAGE}_task", _task_name, replace=True)
OmegaConf.register_new_resolver(f"{PACKAGE}_sweep", _sweep_name, replace=True)


_HELP_HEADER = """\
This is fairseq. The package music_ssl_fairseq adds music2vec and musicHuBERT, models of music:

  fairseq-hydra-train --config-dir examples/music_hubert --config-name short
  fairseq-hydra-train --config-dir examples/music2vec --config-name short
  fairseq-hydra-train --config-dir examples/probing model.upstream=CHECKPOINT task.data=DIR

`python -m music_ssl_fairseq --help` lists its other commands. --help beside a --config-dir lists
the settings of that configuration. What follows is fairseq's own.
"""


def _add_to_help() -> None:
    """Name our models in the help of fairseq-hydra-train, which knows no user_dir."""
    store = ConfigStore.instance()
    node = {"defaults": ["default", "_self_"], "header": _HELP_HEADER}
    store.store(group="hydra/help", name=PACKAGE, node=node)
    defaults = store.repo["hydra"]["config.yaml"].node.defaults
    for entry in defaults:
        if "help" in entry:
            entry.help = PACKAGE


class MusicSSLConfigPlugin(SearchPathPlugin):
    """Put a `--config-dir` of ours before fairseq's own configuration folder."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        from hydra._internal.utils import get_args_parser

        args, _ = get_args_parser().parse_known_args()
        if os.path.basename(sys.argv[0]) == "fairseq-hydra-train":
            check_choice(sys.argv)  # again, if music_ssl_fairseq.pth was not installed
            if args.help:
                _add_to_help()
        if args.config_dir and is_ours(args.config_dir):
            if os.path.basename(sys.argv[0]) == "fairseq-hydra-train":
                prepare_command(sys.argv)
            name = (args.config_name or "config").removesuffix(".yaml")
            patch_refusals()
            path = f"file://{os.path.abspath(args.config_dir)}"
            search_path.prepend(provider=PACKAGE, path=path, anchor="main")
            if name != "config":
                # fairseq's defaults are under "config" as well, below all of it.
                ConfigStore.instance().repo.pop(f"{name}.yaml", None)
