"""`python -m manifests_tools NAME ...`: run one builder."""

import importlib
import signal
import sys
from collections.abc import Sequence
from types import FrameType

from music_ssl_fairseq.errors import InputError

BUILDERS = {
    "pretrain": ("manifests_tools.pretrain", "train.tsv and valid.tsv from a folder of music"),
    "check": ("manifests_tools.check", "re-read manifests, their audio and their labels"),
}
"""Name -> (module with `get_parser()` and `run(...)`, what it makes)."""


def _usage() -> str:
    lines = [f"  {name:<12} {purpose}" for name, (_, purpose) in BUILDERS.items()]
    return "\n".join(
        [
            "usage: python -m manifests_tools NAME [options]",
            "",
            *lines,
            "",
            "`python -m manifests_tools NAME --help` lists the options of one.",
            "",
            "example: python -m manifests_tools pretrain --root ~/Music",
        ]
    )


def _interrupt(signum: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def main(arguments: Sequence[str]) -> int:
    """Run the builder that the first argument names; returns the exit status."""
    if not arguments or arguments[0] in ("-h", "--help"):
        print(_usage())
        return 0 if arguments else 2
    name, *rest = arguments
    if name not in BUILDERS:
        print(f"error: no builder {name!r}; there are: {', '.join(BUILDERS)}", file=sys.stderr)
        return 2
    # File names need not be UTF-8, and the terminal need not be either.
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    # So that a job scheduler's SIGTERM also ends the workers and removes half-written files.
    signal.signal(signal.SIGTERM, _interrupt)
    builder = importlib.import_module(BUILDERS[name][0])
    try:
        return builder.run(**vars(builder.get_parser().parse_args(rest))) or 0
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
