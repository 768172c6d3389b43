"""Read and write manifests: fairseq's .tsv list of audio files, in a few bytes per track.

The first line is the root folder. Every other line is a path relative to it, a tab, and the number
of samples *at 16 kHz*. A 16 kHz file has its own length there, so stock fairseq reads the same
manifest. A file of another rate has the length after resampling.
"""

import os
import shlex
from array import array
from collections.abc import Iterable
from itertools import islice
from pathlib import Path

import numpy as np

from music_ssl_fairseq.audio import EXTENSIONS, parse_member
from music_ssl_fairseq.errors import InputError, one_line
from music_ssl_fairseq.frames import hours
from music_ssl_fairseq.runtime.files import FileParts, atomic_path
from music_ssl_fairseq.runtime.user_command import music_folder, similar, with_path

MAX_SAMPLES = 2**40
"""Per track: two years at 16 kHz. A larger number in a header is damage."""

_MIN_MINUTES = 10  # of music; with less, figures vary by chance
_LOOKED_AT = 10_000  # files and folders of a folder without manifests
_MAX_DIGITS = 15  # of a length; fits 64 bits
_MAX_NAME_BYTES = 4096  # of a path on Linux; elsewhere fewer
_MAX_LINE_BYTES = 1 << 16  # read at once; no line is as long
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"  # some editors put it before UTF-8 text


class Manifest:
    """A manifest, indexed by track.

    Names stay in the file and are decoded on request. Memory holds three integers per track:
    millions of tracks cost tens of megabytes, shared by all workers after a fork.

    Attributes:
        file: the .tsv itself.
        root: the folder that names are relative to.
        num_samples: `[tracks]` int64, at 16 kHz.
    """

    def __init__(self, file: str | os.PathLike):
        """Index a manifest.

        Raises InputError if it is missing or empty, or a line is not `name<TAB>samples` with a
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
        self._text = FileParts(self.file)
        starts, tabs, lengths = array("q"), array("q"), array("q")
        with self.file.open("rb") as handle:
            self.root = self._root(handle.readline(_MAX_LINE_BYTES))
            place = handle.tell()
            lines = iter(lambda: handle.readline(_MAX_LINE_BYTES), b"")
            for number, line in enumerate(lines, 2):
                name, _, samples = line.partition(b"\t")
                samples = samples.rstrip(b"\r\n")
                if reason := _fault(name, samples):
                    raise self._refused(line, number, reason)
                starts.append(place)
                tabs.append(place + len(name))
                lengths.append(int(samples))
                place += len(line)
        if not lengths:
            raise InputError(f"{self.file}: lists no track; make it again from a folder with audio")
        self._starts, self._tabs = np.array(starts), np.array(tabs)
        self.num_samples = np.array(lengths)

    def _root(self, line: bytes) -> str:
        if line.startswith((b"\xff\xfe", b"\xfe\xff")):
            raise InputError(f"{self.file}: UTF-16 text: save it as UTF-8")
        root = line.rstrip(b"\r\n").removeprefix(_BYTE_ORDER_MARK)
        if b"\0" in root or len(root) > _MAX_NAME_BYTES:
            raise self._refused(line, 1, "longer than the path of the music can be")
        return os.fsdecode(root)

    def _refused(self, line: bytes, number: int, reason: str) -> InputError:
        if b"\0" in line:
            reason = "holds NUL bytes, so the file is damaged; make it again"
            return InputError(f"{self.file}, line {number}: {reason}")
        return InputError(f"{self.file}, line {number}: {reason}, found {line[:80]!r}")

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
        start = self._starts[index]
        return os.fsdecode(self._text.read(start, self._tabs[index] - start))

    def path(self, index: int) -> str:
        return os.path.join(self.root, self.name(index))


def _fault(name: bytes, samples: bytes) -> str:
    """Return what is wrong with the cells of a line, if anything."""
    if not samples.isdigit() or len(samples) > _MAX_DIGITS or b"\0" in name:
        return "expected `name<TAB>samples`"
    if not name:
        return "no name before the tab"
    if len(name) > _MAX_NAME_BYTES:
        return f"a name of more than {_MAX_NAME_BYTES} bytes, which no file has"
    if int(samples) > MAX_SAMPLES:
        return "more samples than any file has (2^40 at 16 kHz are two years)"
    return ""


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
    if Path(given, "task.json").is_file():  # of a probing task, where `pretrain` must not write
        there = ", ".join(sorted(path.stem for path in given.glob("*.labels")))
        return InputError(
            f"{given}: this task has no split {Path(file).stem}, only {there}; --split of `probe`, "
            "or --valid-subset of fairseq-validate, names the one to score"
        )
    looked_at = islice(given.rglob("*"), _LOOKED_AT)
    if any(path.suffix.lower() in EXTENSIONS for path in looked_at):
        make = f"python -m manifests_tools pretrain --root {shlex.quote(str(given))}"
        return InputError(f"{given}: music, not manifests, which this makes of it", make)
    root, out = shlex.quote(music_folder()), shlex.quote(str(Path(file).parent))
    where = "" if Path(file).parent.absolute() == Path("manifests").absolute() else f" --out {out}"
    return InputError(
        f"{file}: no such manifest; name another folder, or make it from your music",
        f"python -m manifests_tools pretrain --root {root}{where}",
    )


def concerns(valid: Manifest) -> list[str]:
    """Return one sentence per reason to doubt a validation split's figures."""
    found = []
    minutes = 60 * hours(valid.num_samples)
    if minutes < _MIN_MINUTES:
        found.append(
            f"{valid.file}: holds {minutes:.1f} minutes of music; with less than {_MIN_MINUTES}, "
            "validation figures vary by chance: add music, or give pretrain a larger --valid-share"
        )
    folder = os.path.dirname(valid.name(0))
    in_shards = parse_member(valid.name(0)) is not None  # which tell nothing of folders
    if not in_shards and all(
        os.path.dirname(valid.name(i)) == folder for i in range(1, len(valid))
    ):
        found.append(
            f"{valid.file}: holds a single folder ({one_line(folder) or 'the root'}): for music "
            "of more, give pretrain a larger --valid-share or another --group-by"
        )
    return found
