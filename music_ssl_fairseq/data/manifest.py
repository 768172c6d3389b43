"""Read and write manifests: fairseq's .tsv list of audio files, in a few bytes per track.

The first line is the root folder. Every other line is a path relative to it, a tab, and the number
of samples *at 16 kHz*. A 16 kHz file has its own length there, so stock fairseq reads the same
manifest. A file of another rate has the length after resampling.
"""

import os
import shlex
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from music_ssl_fairseq.data.mapped import MappedFile
from music_ssl_fairseq.errors import InputError
from music_ssl_fairseq.runtime.files import atomic_path
from music_ssl_fairseq.runtime.typed import music_folder, similar, with_path

MAX_SAMPLES = 2**40
"""Per track: two years at 16 kHz. A larger number in a header is damage."""

_MAX_DIGITS = 15  # of a length; fits 64 bits
_MAX_NAME_BYTES = 4096  # of a path on Linux; elsewhere fewer
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"  # some editors put it before UTF-8 text


class Manifest:
    """A manifest, indexed by track.

    Names stay in the mapped file and are decoded on request. Memory holds three integers per track:
    millions of tracks cost tens of megabytes, shared by all workers after a fork.

    Attributes:
        file: the .tsv itself.
        root: the folder that names are relative to.
        num_samples: `[tracks]` int64, at 16 kHz.
    """

    def __init__(self, file: str | os.PathLike):
        """Index a manifest.

        Raises:
            InputError: if it is missing or empty, or a line is not `name<TAB>samples` with a
                possible name and length.
        """
        self.file = Path(file)
        if self.file.is_dir():
            inside = os.path.join(file, "train.tsv")
            if not os.path.isfile(inside):
                raise missing_manifest(Path(inside))
            raise InputError(f"{file}: a folder; give a manifest of it", with_path(file, inside))
        if not self.file.is_file():
            raise missing_manifest(self.file)
        self._text = MappedFile(self.file)
        ends = self._text.positions("\n")
        if len(self._text) and (not len(ends) or ends[-1] != len(self._text) - 1):
            ends = np.append(ends, len(self._text))
        if len(ends) < 2:
            raise InputError(f"{self.file}: lists no track; make it again from a folder with audio")
        self._starts = ends[:-1] + 1
        self._refuse_nul(ends)
        self.root = self._root(int(ends[0]))
        self._tabs = self._one_tab_per_line(ends[1:])
        self._refuse_names(ends[1:])
        self.num_samples = self._numbers(ends[1:])

    def _refuse_nul(self, ends: np.ndarray) -> None:
        nul = self._text.positions("\0")
        if not len(nul):
            return
        if self._text[:2] in (b"\xff\xfe", b"\xfe\xff"):
            raise InputError(f"{self.file}: UTF-16 text: save it as UTF-8")
        line = int(np.searchsorted(ends, nul[0])) + 1
        raise InputError(
            f"{self.file}, line {line}: holds NUL bytes, so the file is damaged; make it again"
        )

    def _root(self, end: int) -> str:
        if end > _MAX_NAME_BYTES:
            raise InputError(
                f"{self.file}, line 1: {end} bytes, longer than the path of the music can be"
            )
        return os.fsdecode(self._text[:end].removeprefix(_BYTE_ORDER_MARK).rstrip(b"\r"))

    def _one_tab_per_line(self, ends: np.ndarray) -> np.ndarray:
        tabs = self._text.positions("\t")
        tabs = tabs[np.searchsorted(tabs, self._starts[0]) :]
        in_line = np.searchsorted(tabs, ends) - np.searchsorted(tabs, self._starts)
        self._refuse_where(in_line != 1, ends)
        return tabs

    def _refuse_names(self, ends: np.ndarray) -> None:
        length = self._tabs - self._starts
        self._refuse_where(length == 0, ends, "no name before the tab")
        reason = f"a name of more than {_MAX_NAME_BYTES} bytes, which no file has"
        self._refuse_where(length > _MAX_NAME_BYTES, ends, reason)

    def _numbers(self, ends: np.ndarray) -> np.ndarray:
        """Parse the numbers between tabs and line ends, of all lines at once."""
        text = self._text.array()
        last = ends - (text[ends - 1] == ord("\r"))
        digits = last - self._tabs - 1
        self._refuse_where((digits < 1) | (digits > _MAX_DIGITS), ends)
        numbers = np.zeros(len(ends), np.int64)
        for place in range(int(digits.max())):
            lines = np.flatnonzero(digits > place)
            digit = text[last[lines] - 1 - place] - np.uint8(ord("0"))
            if (digit > 9).any():
                self._refuse_where(np.isin(np.arange(len(ends)), lines[digit > 9]), ends)
            numbers[lines] += digit.astype(np.int64) * 10**place
        reason = "more samples than any file has (2^40 at 16 kHz are two years)"
        self._refuse_where(numbers > MAX_SAMPLES, ends, reason)
        return numbers

    def _refuse_where(
        self, wrong: np.ndarray, ends: np.ndarray, reason: str = "expected `name<TAB>samples`"
    ) -> None:
        if wrong.any():
            line = int(wrong.argmax())
            start, end = int(self._starts[line]), int(ends[line])
            found = self._text[start : min(end, start + 80)]
            raise InputError(f"{self.file}, line {line + 2}: {reason}, found {found!r}")

    def require_root(self) -> None:
        """Refuse a manifest whose music is not where it was."""
        if os.path.isdir(self.root) or "://" in self.root:
            return
        near = shlex.quote(f"1s|.*|{os.path.abspath(similar(self.root) or music_folder())}|")
        raise InputError(
            f"{self.file}: its music was in {self.root}, and there is no such folder; if it moved, "
            "name its new place in the first line of each manifest",
            f"sed -i {near} {shlex.quote(str(self.file.parent))}/*.tsv",
        )

    def __len__(self) -> int:
        return len(self._starts)

    def name(self, index: int) -> str:
        """Return the track's name relative to the root; surrogate escapes where it is not UTF-8."""
        return os.fsdecode(self._text[self._starts[index] : self._tabs[index]])

    def path(self, index: int) -> str:
        return os.path.join(self.root, self.name(index))


def write_manifest(
    file: str | os.PathLike, root: str | os.PathLike, tracks: Iterable[tuple[str, int]]
) -> None:
    """Write a manifest, atomically, of tracks (name relative to `root`, samples at 16 kHz)."""
    with atomic_path(file) as temporary, temporary.open("wb") as handle:
        handle.write(os.fsencode(root) + b"\n")
        for name, num_samples in tracks:
            handle.write(b"%s\t%d\n" % (os.fsencode(name), num_samples))


def missing_manifest(file: str | os.PathLike) -> InputError:
    """Return the error about a missing manifest, with the command that makes it."""
    given = Path(file).parent
    if given.is_file():
        return InputError(
            f"{given}: a file; give the folder that it is in", with_path(given, str(given.parent))
        )
    root, out = shlex.quote(music_folder()), shlex.quote(str(Path(file).parent))
    where = "" if Path(file).parent.absolute() == Path("manifests").absolute() else f" --out {out}"
    return InputError(
        f"{file}: no such manifest; name another folder, or make it from your music",
        f"python -m manifests_tools pretrain --root {root}{where}",
    )
