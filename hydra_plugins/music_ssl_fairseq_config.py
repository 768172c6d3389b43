"""Lets `fairseq-hydra-train --config-dir DIR` find DIR/config.yaml and this package.

fairseq ships a `config.yaml` of its own, and hydra looks there before it looks in `--config-dir`:
without this plugin DIR/config.yaml is never read and training ends in "Must specify batch size".
And fairseq registers its defaults under the name given with `--config-name`, so that hydra lays
them over everything that a config builds on: a variant of config.yaml would lose most of it.

hydra loads the plugin in every program of the environment, so it imports nothing of the package,
and it acts only if DIR/config.yaml names this package.
"""

import os
import re

from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.config_store import ConfigStore
from hydra.plugins.search_path_plugin import SearchPathPlugin
from omegaconf import OmegaConf

from hydra_plugins._music_ssl_fairseq_folder import PACKAGE, package_dir


def _slug(path: str) -> str:
    """A checkpoint's path as part of a folder's name: the last three parts that say something."""
    parts = re.sub(r"\.\w{1,11}$", "", str(path)).replace(":", "/").split("/")
    named = [part for part in parts if part not in ("", ".", "..", "runs", "checkpoints")]
    prefix = ["random"] if str(path).startswith("random:") and len(named) > 3 else []
    return re.sub(r"[^\w.+-]", "_", "_".join([*prefix, *named[-3:]]))


OmegaConf.register_new_resolver(f"{PACKAGE}_dir", package_dir, replace=True)
OmegaConf.register_new_resolver(f"{PACKAGE}_slug", _slug, replace=True)


def _is_ours(config: str) -> bool:
    try:
        with open(config, encoding="utf-8") as handle:
            return PACKAGE in handle.read(65536)
    except (OSError, UnicodeDecodeError):
        return False


class MusicSSLConfigPlugin(SearchPathPlugin):
    """Puts a `--config-dir` of ours ahead of fairseq's own configuration folder."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        from hydra._internal.utils import get_args_parser

        args, _ = get_args_parser().parse_known_args()
        if args.config_dir and _is_ours(os.path.join(args.config_dir, "config.yaml")):
            path = f"file://{os.path.abspath(args.config_dir)}"
            search_path.prepend(provider=PACKAGE, path=path, anchor="main")
            name = (args.config_name or "config").removesuffix(".yaml")
            if name != "config":
                # The defaults that fairseq has for "config" as well are laid under all of it.
                ConfigStore.instance().repo.pop(f"{name}.yaml", None)
