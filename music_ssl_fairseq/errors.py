"""What this package raises when the input, not the program, is at fault."""

import os

LONGEST = 4000
"""Characters of a message: paths may be long, but a line of 100 MB says nothing."""


class InputError(ValueError):
    """A file, label or setting is wrong.

    The message is one line: which file, what is wrong with it, and what to do. Command lines
    print it as it is and exit with status 1; nothing that was already written is touched.
    """

    def __init__(self, message: str = ""):
        super().__init__(one_line(str(message)))


class AudioError(InputError):
    """An audio file cannot be used; `reason` is the part of the message after the file's name."""

    def __init__(self, path: str, reason: str):
        super().__init__(f"{os.fspath(path)}: {reason}")
        self.path = path
        self.reason = one_line(reason)

    def __reduce__(self):
        # The default pickles `args`, which is the joined message: not what __init__ takes.
        return type(self), (self.path, self.reason)


def one_line(text: str, longest: int = LONGEST) -> str:
    """Text as it can be printed in one line.

    Control characters are written as `\\n` or `\\x00`, and bytes that are not UTF-8, which names of
    files hold as surrogate escapes, as `\\udce9`. What is longer than `longest` loses its middle.
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
