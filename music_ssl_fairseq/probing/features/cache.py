"""Cache of features: computed once per upstream and kind of window, then only read.

Each (upstream, window, kind) has a folder of files: `ID.npy` holds the features of some dozens of
clips; `ID.json`, written last, holds their keys and a checksum. A file without its index does not
count. A file that does not match its checksum is removed, and its features count as missing. Files
do not depend on each other: an interrupted run resumes, two runs may fill the cache at once, and
tasks on the same audio share it.
"""

import contextlib
import hashlib
import json
import logging
import os
import time
import uuid
from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from music_ssl_fairseq.errors import AudioError, InputError
from music_ssl_fairseq.runtime.files import atomic_path, checksum, require_writable, write_json
from music_ssl_fairseq.runtime.npy import whole_array, write_header
from music_ssl_fairseq.runtime.texts import read_object

logger = logging.getLogger(__name__)

_FILE_BYTES = 64 * 2**20
_ABOUT = "about.json"


class _Index(NamedTuple):
    """The contents of a file's `ID.json`."""

    checksum: str  # of the file and of `clips`
    clips: list[tuple[str, int]]  # keys and numbers of vectors, in order


_intact: dict[Path, tuple[_Index, int, int]] = {}
"""Files that this process has digested: index, inode, time of the last change. The next task on the
same clips, or another seed, need not digest gigabytes again."""


class Clip(NamedTuple):
    """A part of an audio file, in samples at 16 kHz, and its key in the cache."""

    path: str
    start: int
    stop: int
    key: str


def clip_at(path: str, start: int, stop: int) -> Clip:
    """Return the clip of a file from sample `start` to before `stop`.

    Its key follows from the file's path and size, from the times of its last changes, and from the
    samples. The system notes one of these times itself: unpacking or copying cannot set it.

    Raises AudioError if the file does not exist.
    """
    try:
        status = os.stat(path)
    except OSError as error:
        raise AudioError(path, error.strerror or str(error)) from None
    state = status.st_size, status.st_mtime_ns, status.st_ctime_ns
    text = "\0".join(map(str, (os.path.realpath(path), *state, start, stop)))
    key = hashlib.blake2b(text.encode("utf-8", "surrogateescape"), digest_size=16).hexdigest()
    return Clip(path, start, stop, key)


class FeatureCache:
    """Features of clips: `[vectors, layers, D]`, a vector per window or, for beats, per frame."""

    def __init__(
        self, root: str | os.PathLike, identity: dict[str, Any], limit: int, upstream: str = ""
    ):
        """Open the part of the cache that `identity` names.

        Args:
            root: the cache's folder.
            identity: of the features; see `feature_identity`.
            limit: largest size of the whole cache in bytes.
            upstream: name to write beside the identity, for people.
        """
        self.root = Path(root)
        digest = hashlib.blake2b(json.dumps(identity, sort_keys=True).encode(), digest_size=8)
        self.folder = self.root / digest.hexdigest()
        self._about = {"upstream": upstream, **identity}
        self._limit = limit
        self._places: dict[str, tuple[Path, slice]] = {}  # a clip's file, and vectors in it
        self._arrays: dict[Path, np.ndarray] = {}  # of the files opened so far
        self._indices: dict[Path, _Index] = {}  # of all files
        self._waiting: list[tuple[str, np.ndarray]] = []  # clips for the next file
        self._waiting_bytes = 0
        self._writer = ThreadPoolExecutor(1)  # its thread starts with the first file
        self._writing: Future[tuple[Path, _Index]] | None = None
        self._in_use: set[str] = set()
        for file in sorted(self.folder.glob("[!.]*.json")):
            if file.name == _ABOUT:
                continue
            try:
                found = read_object(file)
                clips = [(str(key), int(count)) for key, count in found["clips"]]
                self._note(file.with_suffix(".npy"), _Index(str(found["checksum"]), clips))
            except (InputError, ValueError, TypeError, KeyError):
                if file.exists():  # otherwise another process has made room
                    self._drop(file.with_suffix(".npy"))

    def _note(self, file: Path, index: _Index) -> None:
        self._indices[file] = index
        first = 0
        for key, count in index.clips:
            self._places[key] = file, slice(first, first + count)
            first += count

    def _drop(self, file: Path, damaged: bool = True) -> None:
        """Remove a file, and forget its clips."""
        if damaged:
            logger.warning("%s: damaged; the features in it are computed again", file)
        _remove(file)
        self._arrays.pop(file, None)
        self._places = {key: place for key, place in self._places.items() if place[0] != file}

    def __contains__(self, key: str) -> bool:
        """Return whether a clip's features are in the cache, undamaged."""
        return key in self._places and self._open(self._places[key][0])

    def _open(self, file: Path) -> bool:
        """Map a file into memory; return whether it is undamaged."""
        if file in self._arrays:
            return True
        try:
            known = _intact.get(file) == self._state(file)
            index, array = self._indices[file], whole_array(file)
            whole = array is not None and array.ndim == 3
            if whole and (known or _checksum(file, index.clips) == index.checksum):
                self._map(file)
                return True
        except FileNotFoundError:  # another process has made room
            self._drop(file, damaged=False)
            return False
        self._drop(file)
        return False

    def _map(self, file: Path) -> None:
        self._arrays[file] = np.load(file, mmap_mode="r", allow_pickle=False)
        with contextlib.suppress(OSError):  # a cache that this user may only read
            # The least recently used file is deleted first. In full resolution: `_state` has it.
            os.utime(file, ns=(time.time_ns(), time.time_ns()))
        _intact[file] = self._state(file)

    def _state(self, file: Path) -> tuple[_Index, int, int]:
        status = file.stat()
        return self._indices[file], status.st_ino, status.st_mtime_ns

    def vectors(self, key: str) -> np.ndarray:
        """Return a clip's features, which must be in the cache: `[vectors, layers, D]`, mapped."""
        file, vectors = self._places[key]
        return self._arrays[file][vectors]

    def use(self, keys: Iterable[str]) -> None:
        """Protect these clips from `make_room`."""
        self._in_use.update(keys)

    def make_room(self, needed: int) -> None:
        """Delete the least recently used files until `needed` bytes fit; never those in use.

        Raises InputError if `needed` and the files in use are more than the cache may hold.
        """
        own = {self._places[key][0] for key in self._in_use if key in self}
        used = {file: file.stat() for file in self.root.glob("*/*.npy") if file.exists()}
        kept = sum(used[file].st_size for file in own if file in used)
        if needed + kept > self._limit:
            raise InputError(
                f"{self.root}: the features need {(needed + kept) / 1e9:.2f} GB, but the cache may "
                f"hold {self._limit / 1e9:.2f} GB: set task.cache_limit_gb (and perhaps "
                "task.cache_dir, a disk with that much space)"
            )
        total = sum(status.st_size for status in used.values())
        for file in sorted(used.keys() - own, key=lambda file: used[file].st_mtime):
            if total + needed <= self._limit:
                break
            self._drop(file, damaged=False)
            total -= used[file].st_size

    def add(self, key: str, features: np.ndarray) -> None:
        """Take a clip's features; they are written by `flush`, or once they fill a file.

        A file is written while the next features are computed, so an error may come with those.

        Raises InputError if the folder cannot be written: for the first clip, not after hours.
        """
        if not self._waiting:
            require_writable(self.folder, "--cache (task.cache_dir)")
        self._waiting.append((key, features))
        self._waiting_bytes += features.nbytes
        if self._waiting_bytes >= _FILE_BYTES:
            self._start_writing()

    def flush(self) -> None:
        """Write all features that are not on disk.

        Raises InputError if they cannot be written, as on a full disk. Earlier files are kept.
        """
        self._start_writing()
        self._finish_writing()

    def _start_writing(self) -> None:
        self._finish_writing()
        if self._waiting:
            self._writing = self._writer.submit(self._write, self._waiting)
        self._waiting, self._waiting_bytes = [], 0

    def _finish_writing(self) -> None:
        if self._writing is None:
            return
        writing, self._writing = self._writing, None
        try:
            file, index = writing.result()
        except OSError as error:
            raise InputError(
                f"{error.filename or self.folder}: {error.strerror}: the cache of features cannot "
                "be written; make room, or name a folder elsewhere (task.cache_dir, --cache). "
                "What is in the cache is kept"
            ) from None
        self._note(file, index)
        self._map(file)

    def _write(self, waiting: list[tuple[str, np.ndarray]]) -> tuple[Path, _Index]:
        about = self.folder / _ABOUT
        if not about.exists():
            write_json(about, self._about)
        file = self.folder / f"{uuid.uuid4().hex}.npy"
        arrays = [array for _, array in waiting]
        count = sum(len(array) for array in arrays)
        with atomic_path(file) as temporary:
            with temporary.open("wb") as handle:
                write_header(handle, arrays[0].dtype, (count, *arrays[0].shape[1:]))
                for array in arrays:
                    handle.write(np.ascontiguousarray(array).data)
            clips = [(key, len(array)) for key, array in waiting]
            index = _Index(_checksum(temporary, clips), clips)
        try:
            write_json(file.with_suffix(".json"), index._asdict())
        except OSError:
            _remove(file)
            raise
        return file, index


def _checksum(file: Path, clips: list[tuple[str, int]]) -> str:
    """Digest a file and its index's list of clips."""
    both = json.dumps([checksum(file), clips])
    return hashlib.blake2b(both.encode(), digest_size=16).hexdigest()


def _remove(file: Path) -> None:
    file.with_suffix(".json").unlink(missing_ok=True)
    file.unlink(missing_ok=True)
