"""Errors about the user's input, as one line each."""

import os
import sys

from hydra_plugins._music_ssl_fairseq_command import shell_line

MAX_MESSAGE_CHARACTERS = 4000
"""Paths may be long, but a message of 100 MB is useless."""


class InputError(ValueError):
    """A file, label or setting is wrong.

    The message is one line: the file, what is wrong with it, and what to do. Commands print it and
    exit with status 1; files that were written before stay.

    Attributes:
        lines: what commands print: the message, and below it the command that helps, if any.
    """

    def __init__(self, message: str = "", command: str = ""):
        """Describe the mistake; `command` can be typed as it is."""
        message, command = one_line(str(message)), one_line(shell_line(command))
        self.lines = f"{message}\n{command}" if command else message
        super().__init__(f"{message}: `{command}`" if command else message)


class AudioError(InputError):
    """An audio file cannot be used; `reason` is the part of the message after the file's name."""

    def __init__(self, path: str, reason: str):
        super().__init__(f"{os.fspath(path)}: {reason}")
        self.path = path
        self.reason = one_line(reason)

    def __reduce__(self):
        # The default pickles `args`, the joined message, which __init__ does not take.
        return type(self), (self.path, self.reason)


def warn(message: str | None) -> None:
    """Print a warning as one line, on standard error; nothing for None."""
    if message:
        print(f"warning: {one_line(message)}", file=sys.stderr)


def one_line(text: str, longest: int = MAX_MESSAGE_CHARACTERS) -> str:
    """Return text as one printable line.

    Control characters become `\\n` or `\\x00`. Bytes of file names that are not UTF-8 (surrogate
    escapes) become `\\udce9`. Text longer than `longest` loses its middle.
    """
    if len(text) > longest:
        end = longest // 4
        left_out = f" [... {len(text) - longest} characters ...] "
        text = text[: longest - end] + left_out + text[-end:]
    return text if text.isprintable() else "".join(map(_visible, text))


def _visible(character: str) -> str:
    code = ord(character)
    if code < 0x20 or 0x7F <= code < 0xA0 or code in (0x2028, 0x2029) or 0xD800 <= code < 0xE000:
        return repr(character)[1:-1]
    return character
