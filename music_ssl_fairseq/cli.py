"""Begin and end the command lines of the package alike."""

import argparse
import io
import re
import shlex
import sys
from collections.abc import Callable
from os import PathLike
from pathlib import Path
from typing import NoReturn

from music_ssl_fairseq.errors import InputError
from music_ssl_fairseq.runtime.signal_stack import give_signals_a_stack

GOES_ON = "interrupted; the same command, without --force, goes on from here"
"""Message of a stopped command that can be continued."""


class Parser(argparse.ArgumentParser):
    """A parser whose errors are two lines: what is wrong, and how to see the options."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"error: {message}\n{self.prog} --help\n")


def new_parser(module: str, description: str, examples: str) -> argparse.ArgumentParser:
    """Return a parser for `python -m MODULE` that prints description and examples unwrapped."""
    return Parser(
        prog=f"python -m {module}",
        description=description,
        epilog=examples,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def example(name: str) -> str:
    """Return a folder of examples/ as a command typed in the current folder must name it."""
    here = Path("examples", name)
    there = Path(__file__).parents[1] / here
    return shlex.quote(str(there if there.is_dir() and not here.is_dir() else here))


def override(name: str, *values: str | PathLike) -> str:
    """Return a setting of hydra's for the command line: a text, or a list of several."""
    texts = [_hydra_text(str(value)) for value in values]
    shown = texts[0] if len(texts) == 1 else f"[{','.join(texts)}]"
    return f"{name}={shlex.quote(shown)}"


def _hydra_text(text: str) -> str:
    """Quote all but a plain path: hydra would see a list, a number or another setting in it."""
    if re.fullmatch(r"/[\w/.+@ -]*[\w/.+@-]", text, re.ASCII):
        return text
    # Backslashes escape a quote that follows, and nothing else.
    inner = re.sub(r"\\+(?='|$)", lambda found: found[0] * 2, text).replace("'", r"\'")
    return f"'{inner}'"


def newest_run() -> str:
    """Return the newest pre-training run below runs/, to name in a command; empty without one."""
    found = Path("runs").glob("music*/*/checkpoints/checkpoint_best.pt")
    newest = max(found, key=lambda file: file.stat().st_mtime, default=None)
    return str(newest.parents[1]) if newest else ""


def _print_any_name() -> None:
    """Print file names that are not UTF-8, or that the terminal cannot show, as escapes."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def exit_status(
    work: Callable[[], bool | None], output: str | PathLike, interrupted: str = GOES_ON
) -> int:
    """Run the work of a command; print errors in the user's input or the disk as one line.

    Args:
        work: returns False if it left out something that it has named.
        output: what it writes, named in the message about a full disk.
        interrupted: message after Ctrl-C.

    Returns:
        0; 1 after an error; 130 after an interruption.
    """
    give_signals_a_stack()
    _print_any_name()
    try:
        return 1 if work() is False else 0
    except InputError as error:
        print(f"error: {error.lines}", file=sys.stderr)
        return 1
    except OSError as error:  # of audio it is an InputError: this is a full disk or the like
        print(f"error: {error.filename or output}: {error.strerror or error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(interrupted, file=sys.stderr)
        return 130
