"""Read the words of the command that is running, and write them again with others.

The files here are outside of the package, because fairseq registers tasks and models of a user_dir
only if the package is not imported yet. The underscore keeps hydra from loading this as a plugin.
"""

import errno
import importlib.util
import os
import re
import sys

PACKAGE = "music_ssl_fairseq"
FULL_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
LISTS_OF_ONE = ("optimization.lr", "optimization.update_freq")
"""Settings that are lists, of which one value is usual."""
LISTS = ("task.label_dir", "criterion.label_weights", "model.label_layers", "model.target_layers")
"""Settings of which several values are usually a list, not a sweep."""


def package_dir() -> str:
    """Return the package's folder; ModuleNotFoundError if it is not installed."""
    spec = importlib.util.find_spec(PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise ModuleNotFoundError(f"{PACKAGE} is not installed: run `pip install -e .`")
    return spec.submodule_search_locations[0]


def values(arguments: list[str], *options: str) -> list[str]:
    """Return what a command line gives for an option, by any of its names."""
    return [
        argument.partition("=")[2] if "=" in argument else following
        for argument, following in zip(arguments, [*arguments[1:], ""], strict=True)
        if argument.partition("=")[0] in options
    ]


def hydra_word(setting: str) -> str:
    """Return `key=value` as hydra takes it: in quotes where it has letters beyond ASCII."""
    key, _, value = setting.partition("=")
    plain = value.startswith("[") or re.fullmatch(r"[\w./:+-]*", value, re.ASCII)
    return setting if plain else f"{key}={hydra_text(value)}"


def typed() -> list[str]:
    """Return the words of the command: `python -m NAME ...`, or an installed script."""
    if "-m" in sys.orig_argv[1:3]:
        return ["python", *sys.orig_argv[sys.orig_argv.index("-m") :]]
    script = [sys.argv[0]] if sys.argv[0].endswith(".py") else [os.path.basename(sys.argv[0])]
    return [*(["python"] if sys.argv[0].endswith(".py") else []), *script, *sys.argv[1:]]


def with_settings(*settings: str) -> list[str]:
    """Return the command with these `key=value` in place of those given; `key=` removes one."""
    keys = {setting.partition("=")[0] for setting in settings}
    kept = [word for word in typed() if word.lstrip("+").partition("=")[0] not in keys]
    return [*kept, *(hydra_word(setting) for setting in settings if not setting.endswith("="))]


def hydra_text(text: str) -> str:
    """Quote all but a plain path: hydra would see a list, a number or another setting in it."""
    if re.fullmatch(r"/[\w/.+@ -]*[\w/.+@-]", text, re.ASCII):
        return text
    quote = "'" if '"' in text else '"'
    # Backslashes escape a quote that follows, and nothing else.
    inner = re.sub(rf"\\+(?={quote}|$)", lambda found: found[0] * 2, text)
    return f"{quote}{inner.replace(quote, chr(92) + quote)}{quote}"


def shell_line(command: str) -> str:
    """Return a command as one printable line of the same meaning to a shell.

    File names may have control characters, and bytes that are not UTF-8 (surrogate escapes).
    `shlex.quote` has put them in single quotes; they become `'$'\\xe9''`, as `ls` shows them.
    """

    def escaped(found: re.Match[str]) -> str:
        data = found[0].encode("utf-8", "surrogateescape")
        return "'$'" + "".join(f"\\x{byte:02x}" for byte in data) + "''"

    return re.sub(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\udc80-\udcff]+", escaped, command)


def config_dirs(arguments: list[str]) -> list[str]:
    """Return the folders that a command line names with `--config-dir`."""
    return values(arguments, "--config-dir", "-cd")


def example(name: str) -> str:
    """Return a folder of examples/, as a command typed in the current folder must name it."""
    here = os.path.join("examples", name)
    there = os.path.join(os.path.dirname(package_dir()), here)
    return there if os.path.isdir(there) and not os.path.isdir(here) else here


def is_ours(folder: str) -> bool:
    """Return whether a configuration folder is one of this package's."""
    try:
        with open(os.path.join(folder, "config.yaml"), encoding="utf-8") as handle:
            return PACKAGE in handle.read(65536)
    except (OSError, UnicodeDecodeError):
        return False
