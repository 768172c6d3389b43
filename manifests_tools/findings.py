"""Problems that a check comes across."""

import sys
from collections import Counter

from tqdm import tqdm

from music_ssl_fairseq.errors import one_line

_SHOWN = 20


class Findings:
    """Problems, printed as they are found: the first 20 of a kind, and a count of the others."""

    def __init__(self) -> None:
        self._kinds: Counter[str] = Counter()

    def note(self, line: str) -> None:
        """Print something that is worth knowing, and no problem."""
        tqdm.write(_printable(line), file=sys.stderr)

    def add(self, kind: str, line: str) -> None:
        """Note a problem; `line` says all of it."""
        self._kinds[kind] += 1
        if self._kinds[kind] <= _SHOWN:
            tqdm.write(one_line(line))

    def __len__(self) -> int:
        return self._kinds.total()

    def finish(self) -> None:
        """Say what was not printed, and how many problems there are."""
        for kind, count in self._kinds.items():
            if count > _SHOWN:
                print(f"... and {count - _SHOWN} more: {kind}")
        print(f"{len(self)} problem{'s' if len(self) > 1 else ''} found")


def _printable(line: str) -> str:
    # Names need not be UTF-8, and would not print.
    return line.encode("utf-8", "backslashreplace").decode("utf-8")
