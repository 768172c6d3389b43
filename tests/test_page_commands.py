"""Every command on the pages and in configurations parses: its options, files and extras exist."""

import importlib
import re
import shlex
import tomllib
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from pkgutil import resolve_name

import pytest

from hydra_plugins._music_ssl_fairseq_refusals import settings
from manifests_tools.__main__ import BUILDERS
from music_ssl_fairseq.__main__ import COMMANDS
from tests import ROOT
from tests.test_docs import PAGES

BLOCK = re.compile(r"^```(?:bash|sh)?\n(.*?)^```", re.DOTALL | re.MULTILINE)
INLINE = re.compile(r"`(python -m (?:music_ssl_fairseq|manifests_tools)[^`]*)`")
PROGRAMS = ("python", "fairseq-", "bash ", "pip ")
FOREIGN = {
    *(
        "apt-get",
        "cd",
        "cmake",
        "cp",
        "curl",
        "docker",
        "export",
        "find",
        "git",
        "mkdir",
        "nvidia-smi",
    ),
    *("pre-commit", "rsync", "sbatch", "sed", "source", "srun", "sudo", "tensorboard", "torchrun"),
    *("trackio", "uv", "wandb", "for", "do", "done"),
}
"""Programs of others, and words of the shell."""


def commands(page: Path) -> Iterator[tuple[str, ...]]:
    """Words of each command in a page's blocks; a line may have several."""
    for block in BLOCK.findall(page.read_text(encoding="utf-8")):
        lines = block.replace("\\\n", " ").splitlines()
        if any(line.startswith(PROGRAMS) for line in lines):  # otherwise output, or a file
            for line in lines:
                yield from split(line)


def commands_of_header(config: Path) -> Iterator[tuple[str, ...]]:
    """Words of each command in the comments of a configuration, which are indented there."""
    comments = re.findall(r"^#   (.*)$", config.read_text(encoding="utf-8"), re.MULTILINE)
    for line in "\n".join(comments).replace("\\\n", " ").splitlines():
        if line.startswith(PROGRAMS):
            yield from split(line)


def split(line: str) -> Iterator[tuple[str, ...]]:
    """Cut a line of the shell at `&&`, `;` and `|`; leave out comments and assignments."""
    while (shorter := re.sub(r"\$\([^()]*\)", "VALUE", line)) != line:
        line = shorter
    words = shlex.shlex(line, posix=True, punctuation_chars=True)
    words.whitespace_split = True
    found: list[str] = []
    for word in [*words, ";"]:
        if set(word) <= set("();|&"):
            while found and re.fullmatch(r"[A-Z_0-9]+=.*", found[0]):
                del found[0]
            if found:
                yield tuple(found)
            found = []
        else:
            found.append(word)


FOUND = sorted({(command, page) for page in PAGES for command in commands(page)})
IN_HEADERS = sorted(
    {(words, f) for f in (ROOT / "examples").glob("*/*.yaml") for words in commands_of_header(f)}
)
SPANS = sorted(
    {" ".join(text.split()) for page in PAGES for text in INLINE.findall(page.read_text("utf-8"))}
)


@pytest.mark.parametrize(("words", "page"), FOUND + IN_HEADERS, ids=lambda v: str(v)[:40])
def test_a_command_parses(words, page, monkeypatch):
    monkeypatch.chdir(ROOT)
    check(list(words), page)


@pytest.mark.parametrize("text", SPANS, ids=lambda text: text[:60])
def test_a_command_in_a_sentence_has_its_options(text):
    words = shlex.split(text.replace("...", ""))[2:]
    parser = parser_of(words)
    for word in words:
        if word.startswith("--") and word != "--help":
            assert parser is not None, text
            assert word.partition("=")[0] in parser._option_string_actions, text


def check(words: list[str], page: Path) -> None:
    program, rest = words[0], words[1:]
    if program in FOREIGN:
        return
    if program == "fairseq-hydra-train":
        check_training(rest)
    elif program == "fairseq-validate":
        check_validation(rest)
    elif program == "pip":
        extras = [e for word in rest for e in re.findall(r"^\.\[(.*)\]$", word)]
        assert {e for text in extras for e in text.split(",")} <= set(extras_of_package())
    elif program == "bash":
        check_script(ROOT / rest[0], rest[1:])
    elif re.fullmatch(r"python3?(\.\d+)?", program) and rest[:1] == ["-m"]:
        check_module(rest[1:])
    elif re.fullmatch(r"python3?(\.\d+)?", program):
        if rest[0] != "-c":
            check_script(ROOT / rest[0], rest[1:])
    else:
        raise AssertionError(f"{page}: what is {program!r}? name it in FOREIGN, or check it")


def check_module(words: list[str]) -> None:
    name, rest = words[0], words[1:]
    if name in ("venv", "pip", "pytest"):
        return
    if name.startswith("tests."):
        check_script(ROOT / (name.replace(".", "/") + ".py"), rest)
        return
    parser = parser_of(words)
    if parser is None:
        assert rest in (["--help"], ["NAME", "--help"]), words
    elif "--help" not in rest:
        options = rest if name.startswith("music_ssl_fairseq.") else rest[1:]
        parser.parse_args([word for word in options if word != "..."])


def parser_of(words: list[str]):
    """The parser of `MODULE [NAME]`; None where the name is missing or a placeholder."""
    name, rest = words[0], words[1:]
    if name == "manifests_tools":
        known = BUILDERS.get(rest[0] if rest else "")
        return resolve_name(known[0]).get_parser() if known else None
    package, _, command = name.partition(".")
    assert package == "music_ssl_fairseq", name
    if not command:
        command = rest[0] if rest else ""
    if command not in COMMANDS:
        assert command in ("", "--help", "NAME", "COMMAND"), name
        return None
    return importlib.import_module(COMMANDS[command][0]).get_parser()


def check_script(file: Path, words: list[str]) -> None:
    """Its options are written somewhere in it, or in a script beside it that it calls."""
    assert file.exists(), file
    beside = [file, *file.parent.glob("*.py")] if file.suffix == ".sh" else [file]
    text = "".join(path.read_text(encoding="utf-8") for path in beside)
    for word in words:
        if word.startswith("--"):
            assert word.partition("=")[0] in text, f"{file}: {word}"


def check_training(words: list[str]) -> None:
    """The configuration exists, and has the settings that the command gives."""
    from hydra._internal.utils import get_args_parser
    from hydra.core.override_parser.overrides_parser import OverridesParser

    args = get_args_parser().parse_args([word for word in words if word != "..."])
    if args.config_dir is None:
        return
    overrides = OverridesParser.create().parse_overrides(args.overrides)
    known = settings(args.config_dir, args.config_name or "config")
    for override in overrides:
        key = override.key_or_group
        if not (override.is_force_add() or override.is_delete() or key.startswith("hydra")):
            assert key in known or key.partition(".")[0] in ("lr_scheduler", "optimizer"), key


def check_validation(words: list[str]) -> None:
    from fairseq import options

    import music_ssl_fairseq

    music_ssl_fairseq.register()
    parser = options.get_validation_parser()
    arguments = [word for word in words if word != "..."]
    at = arguments.index("--user-dir")
    arguments[at + 1] = str(ROOT / "music_ssl_fairseq")
    options.parse_args_and_arch(parser, input_args=arguments)


@cache
def extras_of_package() -> frozenset[str]:
    with (ROOT / "pyproject.toml").open("rb") as file:
        return frozenset(tomllib.load(file)["project"]["optional-dependencies"])


def test_the_pages_have_commands():
    assert len(FOUND) > 50
    assert len(IN_HEADERS) > 40
    assert len(SPANS) > 10
