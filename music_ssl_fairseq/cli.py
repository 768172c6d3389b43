"""Begin and end the command lines of the package alike."""

import argparse
import io
import math
import os
import re
import shlex
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from difflib import get_close_matches
from os import PathLike
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

from hydra_plugins._music_ssl_fairseq_command import (
    FULL_DISK,
    example,
    hydra_text,
    shell_line,
    typed,
)
from music_ssl_fairseq.errors import InputError
from music_ssl_fairseq.runtime.imports import SOURCE
from music_ssl_fairseq.runtime.machine import available_cpus, give_signals_a_stack
from music_ssl_fairseq.runtime.user_command import (
    look_around,
    made_tasks,
    music_folder,
    usual_model,
    with_command,
)

_IMPORT_PAUSE_SECONDS = 0.1
_PROGRAMS = dict.fromkeys(("pretrain", "check", "fetch", "custom"), "python -m manifests_tools")
_PROGRAMS |= dict.fromkeys(("label", "probe", "report", "map"), "python -m music_ssl_fairseq")
"""Command -> its program, for commands that users look for in the other program."""
_SYNONYMS = {"--out": ["--to"], "--to": ["--out"], "--model": ["--checkpoint", "--upstream"]}

CHECKPOINT = (
    "a checkpoint of this package, fairseq or torchaudio, the folder of a run, a Hugging Face "
    "folder or hf:USER/NAME"
)
"""The forms of a model that commands take, for their help texts."""

CONTINUES = "interrupted; to continue, run"
"""Message of a stopped command that can be continued; the command follows, without --force."""

BEGINS = "interrupted; to begin again, run"
"""Message of one that cannot; the command follows as it was."""


class Parser(argparse.ArgumentParser):
    """A parser whose errors are two lines: what is wrong, and a command that is right."""

    substitutes: Mapping[str, str] = {}
    """Option -> the word that replaces it and a wrong value, if it cannot be left out."""
    _given: Sequence[str] = ()
    _trying = False

    def option(self, form: str, help: str, default: Any = None, **arguments: Any) -> None:
        """Add an option or argument, as `add_argument` does; the help ends with a plain default.

        Args:
            form: its name, and what its value is called: `--seed N`. An older name of an option
                follows its name after a comma: `--upstream,--checkpoint X`.
            help: says itself what happens without the option, if it has no plain default.
            default: a path makes it a folder.
        """
        names, _, metavar = form.partition(" ")
        if metavar:
            arguments["metavar"] = metavar
        if isinstance(default, Path):
            arguments = {"type": Path, "metavar": "DIR", **arguments}
        if isinstance(default, Path | str | int | float) and "default" not in help:
            help += f" (default: %(default){'g' if isinstance(default, float) else 's'})"
        if default is not None:
            arguments["default"] = default
        self.add_argument(*names.split(","), help=help, **arguments)

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Parse, and remember what was given."""
        self._given = list(sys.argv[1:] if args is None else args)
        return super().parse_known_args(self._given, namespace)

    def error(self, message: str) -> NoReturn:
        """End with the most similar command that parses, or with --help."""
        if self._trying:
            raise argparse.ArgumentError(None, message)
        given, self._trying = self._given, True
        right = next(filter(self._parses, self._similar(list(given), message)), ["--help"])
        command = shell_line(f"{self.prog} {shlex.join(right)}".rstrip())
        self.exit(2, f"error: {message}\n{command}\n")

    def _parses(self, words: list[str]) -> bool:
        try:
            self.parse_args(words)
        except argparse.ArgumentError:
            return False
        return "--help" not in words

    def _similar(self, words: list[str], message: str) -> Iterator[list[str]]:
        """Yield commands with one mistake less."""
        yield from self._with_known_options(words)
        yield from _with_quoted_paths(words)
        if choice := re.search(r"invalid choice: '(.*?)' \(choose from (.*)\)", message):
            for near in get_close_matches(choice[1].lower(), re.findall(r"[^\s,']+", choice[2])):
                yield [word.replace(choice[1], near) for word in words]
        if wrong := re.match(r"argument (-\S+): ", message):
            yield from _without_option(words, wrong[1], self.substitutes.get(wrong[1]))
        if missing := re.search(r"are required: (-.+)$", message):
            names = [option.partition("/")[0] for option in missing[1].split(", ")]
            yield from _with_options(words, names)
        if message.endswith("are required: FOLDER"):
            yield [music_folder(), *words]

    def _with_known_options(self, words: list[str]) -> Iterator[list[str]]:
        """Correct the spelling of an option."""
        for i, word in enumerate(words):
            option, *value = word.split("=", 1)
            if option.startswith("-") and option not in self._option_string_actions:
                near = get_close_matches(option, self._option_string_actions, cutoff=0.75)
                for right in [*_SYNONYMS.get(option, []), *near]:
                    yield [*words[:i], "=".join([right, *value]), *words[i + 1 :]]


def _with_quoted_paths(words: list[str]) -> Iterator[list[str]]:
    """Join words that are one path with spaces; mark a path that begins with a dash."""
    for first, word in enumerate(words):
        if word.startswith("-") and os.path.exists(word):
            yield [*words[:first], os.path.join(os.curdir, word), *words[first + 1 :]]
        for end in range(len(words), first + 1, -1):
            if os.path.exists(path := " ".join(words[first:end])):
                yield [*words[:first], path, *words[end:]]


def _without_option(words: list[str], option: str, instead: str | None) -> Iterator[list[str]]:
    """Leave out an option and its value, or give another word for both."""
    for i, word in enumerate(words):
        name, is_one_word, _ = word.partition("=")
        if name == option:
            yield [*words[:i], *filter(None, [instead]), *words[i + (1 if is_one_word else 2) :]]


def _with_options(words: list[str], options: list[str]) -> Iterator[list[str]]:
    """Give the usual values, or put an option before the word that is its value."""
    usual = dict.fromkeys(("--checkpoint", "--upstream"), usual_model())
    usual |= {"--manifest": "manifests/train.tsv", "--out": "features/train"}
    usual |= {"--task": next(iter(made_tasks()), "")}
    for i, word in reversed(list(enumerate(words))):
        if os.path.exists(word) or options[-1] in ("--checkpoint", "--upstream"):
            yield [*words[:i], options[-1], *words[i:]]
    if all(usual.get(option) for option in options):
        yield [*words, *(word for option in options for word in (option, usual[option]))]


def slow_bars_in_logs() -> None:
    """Let progress bars that go to a log move every ten seconds. Call it before tqdm's import."""
    if not sys.stderr.isatty():  # ten bars per second are megabytes
        os.environ.setdefault("TQDM_MININTERVAL", "10")


def dispatch(
    program: str,
    usage: str,
    known: Mapping[str, tuple[str, str]],
    run: Callable[[str, list[str]], int],
    argv: Sequence[str] | None,
) -> int:
    """Run what the first argument names; return the exit status.

    Args:
        program: as typed, such as `python -m manifests_tools`.
        usage: help of the program, with `{names}` where names and purposes are listed.
        known: name -> where it is, and its purpose.
        run: takes where it is and the other arguments; returns the exit status.
        argv: by default the command's.
    """
    name, *rest = list(sys.argv[1:] if argv is None else argv) or [""]
    if name in ("", "-h", "--help"):
        names = "\n".join(f"  {name:<18} {purpose}" for name, (_, purpose) in known.items())
        print(usage.format(names=names), end="")
        return 0 if name else 2
    if name in known:
        slow_bars_in_logs()
        try:
            return run(known[name][0], rest)
        except ModuleNotFoundError as error:  # of what pyproject.toml requires: extras are caught
            package = (error.name or "").partition(".")[0]
            if package in ("", "manifests_tools", "music_ssl_fairseq"):
                raise
            print(f"error: {sys.executable} has no package {package}; run", file=sys.stderr)
            print(f"pip install -e {shell_line(shlex.quote(SOURCE))}", file=sys.stderr)
            return 1
    near = [name] if name in _PROGRAMS else get_close_matches(name, known, 1)
    command = [*near, *rest] if near and rest else [*near, "--help"]
    right = f"{_PROGRAMS.get(name, program)} {shlex.join(command)}"
    if name == "train":
        folder = shlex.quote(example("music_hubert"))
        right = f"fairseq-hydra-train --config-dir {folder} --config-name short"
    print(f"error: no command {name!r}; there are: {', '.join(known)}", file=sys.stderr)
    print(shell_line(right), file=sys.stderr)
    return 2


def new_parser(command: str, description: str, examples: str) -> Parser:
    """Return a parser for `python -m COMMAND` that prints description and examples unwrapped."""
    slow_bars_in_logs()  # of `python -m music_ssl_fairseq.label`, which nothing dispatches
    return Parser(
        prog=f"python -m {command}",
        description=description,
        epilog=examples,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def add_workers(parser: Parser, what: str, least: int = 1) -> None:
    """Add the option `--workers`, by default a process per CPU."""
    text = f"{what} (default: the CPUs this process may use, here %(default)s)"
    number = whole_number(least)
    parser.option("--workers N", text, default=available_cpus(), type=number)


def whole_number(least: int, most: int | None = None) -> Callable[[str], int]:
    """Return the `type` of an option: a whole number of at least `least`, and at most `most`."""
    return _number(int, "whole number", least, math.inf if most is None else most)


def real_number(least: float, most: float = math.inf) -> Callable[[str], float]:
    """Return the `type` of an option: a finite number of at least `least`, and at most `most`."""
    return _number(float, "number", least, most)


def _number(kind: type, name: str, least: float, most: float) -> Callable[[str], Any]:
    def number(text: str) -> Any:
        value = kind(text)
        if not least <= value <= most or value == math.inf:
            bound = f"at least {least}" if most == math.inf else f"from {least} to {most}"
            raise argparse.ArgumentTypeError(f"must be {bound}")
        return value

    number.__name__ = name  # for the message about other text
    return number


def override(name: str, *values: str | PathLike) -> str:
    """Return a setting of hydra's for the command line: a text, or a list of several."""
    texts = [hydra_text(str(value)) for value in values]
    shown = texts[0] if len(texts) == 1 else f"[{','.join(texts)}]"
    return f"{name}={shlex.quote(shown)}"


def _interrupt_after_imports(number: int, frame: FrameType | None) -> None:
    """Raise KeyboardInterrupt; within an import, which that would break, signal again later."""
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            again = threading.Timer(_IMPORT_PAUSE_SECONDS, os.kill, (os.getpid(), number))
            again.daemon = True
            return again.start()
        frame = frame.f_back
    raise KeyboardInterrupt


def exit_status(
    work: Callable[[], bool | None], output: str | PathLike, interrupted: str = CONTINUES
) -> int:
    """Run the work of a command; print errors in the user's input or the disk as one line.

    Args:
        work: returns False if it left out something that it has named.
        output: what it writes, named in the message about a full disk.
        interrupted: message after Ctrl-C; the command follows.

    Returns:
        0; 1 after an error; 130 after an interruption.
    """
    give_signals_a_stack()
    in_main = threading.current_thread() is threading.main_thread()
    if in_main and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _interrupt_after_imports)
    # File names that are not UTF-8, or that the terminal cannot show, are printed as escapes.
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        os.getcwd()
    except FileNotFoundError:
        print("error: the current folder was removed: go to another\ncd", file=sys.stderr)
        return 1
    try:
        return 1 if work() is False else 0
    except InputError as error:
        print(f"error: {with_command(error.lines)}", file=sys.stderr)
        return 1
    except OSError as error:  # of audio it is an InputError: this is a full disk or the like
        name = os.fspath(error.filename or output)
        name = os.fspath(output) if ".tmp" in os.path.basename(name) else name  # not yet renamed
        listing = look_around(os.path.abspath(name)).partition(" ")[2]
        full = error.errno in FULL_DISK
        print(f"error: {name}: {error.strerror or error}", file=sys.stderr)
        print(shell_line(f"df -h {listing}" if full else f"ls -ld {listing}"), file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(interrupted, file=sys.stderr)
        again = (word for word in typed() if word != "--force" or interrupted == BEGINS)
        print(shell_line(shlex.join(again)), file=sys.stderr)
        return 130
