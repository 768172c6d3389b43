"""How every command line of the package ends."""

import argparse
import shlex
import sys
from collections.abc import Callable
from os import PathLike
from pathlib import Path

from music_ssl_fairseq.errors import InputError
from music_ssl_fairseq.runtime.signal_stack import give_signals_a_stack

GOES_ON = "interrupted; the same command, without --force, goes on from here"
"""What a command that can be continued says when it is stopped."""


def new_parser(module: str, description: str, examples: str) -> argparse.ArgumentParser:
    """A parser for `python -m MODULE` that prints description and examples as they are written."""
    return argparse.ArgumentParser(
        prog=f"python -m {module}",
        description=description,
        epilog=examples,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def example(name: str) -> str:
    """A folder of examples/, as a command typed in the current folder has to name it."""
    here = Path("examples", name)
    there = Path(__file__).parents[1] / here
    return shlex.quote(str(there if there.is_dir() and not here.is_dir() else here))


def exit_status(
    work: Callable[[], bool | None], output: str | PathLike, interrupted: str = GOES_ON
) -> int:
    """Do the work of a command; say in one line what was wrong, if it was something of the user's.

    Args:
        work: returns False if something was left out that the command has named.
        output: what it writes, to be named when the disk is full or the like.
        interrupted: said after Ctrl-C.

    Returns:
        0, or 1 after an error, or 130 after an interruption.
    """
    give_signals_a_stack()
    try:
        return 1 if work() is False else 0
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except OSError as error:  # of audio it is an InputError: this is a full disk or the like
        print(f"error: {error.filename or output}: {error.strerror or error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(interrupted, file=sys.stderr)
        return 130
