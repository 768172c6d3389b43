"""Manifests: fairseq's .tsv list of audio files, held in a few bytes a track.

The first line is the root folder; every other one is `path relative to it`, a tab, and the number
of samples *at 16 kHz*. For a 16 kHz file that is its own length, so stock fairseq reads the same
manifest; a file of another rate is resampled when read, and its length here is the one after that.
"""

import mmap
import os
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from music_ssl_fairseq.errors import InputError
from music_ssl_fairseq.files import atomic_path


class Manifest:
    """A manifest, indexed by track.

    Names stay in the mapped file and are decoded when asked for; what is held is three integers a
    track, so millions of tracks cost tens of megabytes, shared by all workers after a fork.

    Attributes:
        file: the .tsv itself.
        root: the folder that names are relative to.
        num_samples: `[tracks]` int64, at 16 kHz.
    """

    def __init__(self, file: str | os.PathLike):
        """Index a manifest.

        Raises:
            InputError: if it is missing, empty, or a line is not `name<TAB>samples`.
        """
        self.file = Path(file)
        if not self.file.is_file():
            raise InputError(
                f"{self.file}: no such manifest; make it with "
                f"`python -m manifests_tools pretrain --root MUSIC_DIR --out {self.file.parent}`"
            )
        self._text = self._map()
        ends = np.flatnonzero(np.frombuffer(self._text, np.uint8) == ord("\n"))
        if len(self._text) and (not len(ends) or ends[-1] != len(self._text) - 1):
            ends = np.append(ends, len(self._text))
        if len(ends) < 2:
            raise InputError(f"{self.file}: lists no track; make it again from a folder with audio")
        self.root = os.fsdecode(self._text[: ends[0]].rstrip(b"\r"))
        self._starts = ends[:-1] + 1
        tabs = np.empty(len(self._starts), np.int64)
        self.num_samples = np.empty(len(self._starts), np.int64)
        for i, (start, end) in enumerate(zip(self._starts.tolist(), ends[1:].tolist())):
            name, tab, samples = self._text[start:end].partition(b"\t")
            if not tab or not samples.strip().isdigit():
                raise InputError(
                    f"{self.file}, line {i + 2}: expected `name<TAB>samples`, "
                    f"found {self._text[start:end][:80]!r}"
                )
            tabs[i] = start + len(name)
            self.num_samples[i] = int(samples)
        self._tabs = tabs

    def _map(self) -> mmap.mmap | bytes:
        with self.file.open("rb") as handle:
            if os.fstat(handle.fileno()).st_size == 0:
                return b""
            return mmap.mmap(handle.fileno(), 0, access=mmap.ACCESS_READ)

    def __getstate__(self) -> dict:
        # A map cannot be pickled: a spawned worker maps the file again.
        return {**self.__dict__, "_text": None}

    def __setstate__(self, state: dict) -> None:
        self.__dict__.update(state)
        self._text = self._map()

    def __len__(self) -> int:
        return len(self._starts)

    def name(self, index: int) -> str:
        """The track's name relative to the root (surrogate escapes where it is not UTF-8)."""
        return os.fsdecode(self._text[self._starts[index] : self._tabs[index]])

    def path(self, index: int) -> str:
        """The track's file."""
        return os.path.join(self.root, self.name(index))


def write_manifest(
    file: str | os.PathLike, root: str | os.PathLike, tracks: Iterable[tuple[str, int]]
) -> None:
    """Write a manifest, atomically.

    Args:
        root: absolute folder of the audio.
        tracks: (name relative to root, samples at 16 kHz) in the order they are to have.
    """
    with atomic_path(file) as temporary, temporary.open("wb") as handle:
        handle.write(os.fsencode(root) + b"\n")
        for name, num_samples in tracks:
            handle.write(b"%s\t%d\n" % (os.fsencode(name), num_samples))
