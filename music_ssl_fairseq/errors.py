"""What this package raises when the input, not the program, is at fault."""

import os


class InputError(ValueError):
    """A file, label or setting is wrong.

    The message is one line: which file, what is wrong with it, and what to do. Command lines
    print it as it is and exit with status 1; nothing that was already written is touched.
    """


class AudioError(InputError):
    """An audio file cannot be used; `reason` is the part of the message after the file's name."""

    def __init__(self, path: str, reason: str):
        # A name that is not UTF-8 arrives with surrogate escapes, which cannot be printed.
        printable = os.fsencode(path).decode("utf-8", "backslashreplace")
        super().__init__(f"{printable}: {reason}")
        self.path = path
        self.reason = reason

    def __reduce__(self):
        # The default pickles `args`, which is the joined message: not what __init__ takes.
        return type(self), (self.path, self.reason)
