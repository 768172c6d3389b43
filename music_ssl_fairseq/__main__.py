"""`python -m music_ssl_fairseq COMMAND ...`: run one command of the package."""

import importlib
import sys
from collections.abc import Sequence

from music_ssl_fairseq.cli import dispatch

COMMANDS = {
    "label": ("music_ssl_fairseq.label.__main__", "make K-means labels (units) of a manifest"),
    "probe": ("music_ssl_fairseq.probe", "score frozen models on tasks, and report"),
    "report": ("music_ssl_fairseq.report.__main__", "write a page and tables of scored probes"),
    "map": (
        "music_ssl_fairseq.map.__main__",
        "write a page with a map of a folder's songs, to play",
    ),
    "extract": ("music_ssl_fairseq.extract.__main__", "write features of a manifest to disk"),
    "export": ("music_ssl_fairseq.export.__main__", "write a model for other software or the hub"),
}
"""Name -> (module with `main(argv)`, its purpose)."""

_USAGE = """\
usage: python -m music_ssl_fairseq COMMAND [options]

{names}

`python -m music_ssl_fairseq COMMAND --help` lists the options of one.

Two more programs belong to it:
  python -m manifests_tools        make manifests of a music folder, and the data of probing tasks
  fairseq-hydra-train              train: --config-dir examples/music_hubert --config-name short

From music to scores:
  python -m manifests_tools pretrain --root ~/music
  python -m music_ssl_fairseq label --k 500
  fairseq-hydra-train --config-dir examples/music_hubert --config-name short
  python -m music_ssl_fairseq probe --upstream runs/music_hubert/short --task DIR
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command that the first argument names; return the exit status."""
    return dispatch("python -m music_ssl_fairseq", _USAGE, COMMANDS, _run, argv)


def _run(module: str, rest: list[str]) -> int:
    return importlib.import_module(module).main(rest)


if __name__ == "__main__":
    sys.exit(main())
