"""Collect and print the problems that a check finds."""

import contextlib
import sys
from collections import Counter
from collections.abc import Iterator

from tqdm import tqdm

from music_ssl_fairseq.errors import InputError, one_line
from music_ssl_fairseq.frames import counted

_MAX_LINES = 20


class Findings:
    """Print problems as they are found: the first 20 of each kind, and a count of the others."""

    def __init__(self) -> None:
        self._kinds: Counter[str] = Counter()

    def note(self, line: str) -> None:
        """Print a remark that is no problem."""
        tqdm.write(one_line(line), file=sys.stderr)

    def add(self, kind: str, line: str) -> None:
        """Count a problem and print `line`."""
        self._kinds[kind] += 1
        if self._kinds[kind] <= _MAX_LINES:
            tqdm.write(one_line(line))

    @contextlib.contextmanager
    def catching(self, kind: str) -> Iterator[None]:
        """Add the InputError that the block raises, if any."""
        try:
            yield
        except InputError as error:
            self.add(kind, str(error))

    def __len__(self) -> int:
        return self._kinds.total()

    def finish(self) -> None:
        """Print how many problems there are, and how many were not printed."""
        for kind, count in self._kinds.items():
            if count > _MAX_LINES:
                print(f"... and {count - _MAX_LINES} more: {kind}")
        print(f"{counted(len(self), 'problem')} found")
