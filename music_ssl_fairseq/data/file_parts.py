"""Read parts of files that are too large to load."""

import os
from pathlib import Path

from music_ssl_fairseq.errors import InputError


class FileParts:
    """An open file, of which any part can be read; processes may share it."""

    def __init__(self, file: Path):
        self.file = file
        self._handle = file.open("rb")

    def __getstate__(self) -> Path:
        return self.file  # an open file cannot be pickled: a spawned worker opens it again

    def __setstate__(self, state: Path) -> None:
        self.__init__(state)  # type: ignore[misc]

    def read(self, begin: int, count: int) -> bytes:
        """Read `count` bytes from `begin` on.

        Through a memory map instead, a file that has been cut would kill the process.

        Raises:
            InputError: if they are no longer there, or cannot be read.
        """
        try:
            part = os.pread(self._handle.fileno(), count, begin)
        except OSError as error:
            raise InputError(f"{self.file}: {error.strerror or error}") from None
        if len(part) < count:
            raise InputError(
                f"{self.file}: it has been cut, to less than {begin + count} bytes, since it was "
                "opened: make it again, and run the same command to continue"
            )
        return part
