"""The cache of features: computed once for an upstream and a kind of window, then only read.

A folder of shards for each (upstream, window, kind): `ID.npy` with the features of some dozens of
clips, and `ID.json` with their names in the cache and the shard's checksum, written last, so that a
shard without it does not count. A shard is compared with its checksum before it is used; a damaged
one is removed, and its features count as missing. What is in one stays usable whatever happens to
others, so an interrupted run goes on, two runs may fill the cache at once, and tasks on the same
audio share it.
"""

import contextlib
import hashlib
import json
import logging
import os
import uuid
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from music_ssl_fairseq.data.manifest import Manifest
from music_ssl_fairseq.errors import AudioError, InputError
from music_ssl_fairseq.runtime.files import atomic_path, checksum
from music_ssl_fairseq.runtime.npy import header_of, write_header

logger = logging.getLogger(__name__)

_SHARD_BYTES = 64 * 2**20
_ABOUT = "about.json"


class Clip(NamedTuple):
    """A part of a file, with its name in the cache."""

    path: str
    start: int
    stop: int
    key: str


def clip_of(manifest: Manifest, line: int, segment: Sequence[int]) -> Clip:
    """A line of a manifest. The name follows from the file's path, size and time of last change,
    and the part that counts.

    Raises:
        AudioError: if the file does not exist.
    """
    path = manifest.path(line)
    try:
        status = os.stat(path)
    except OSError as error:
        raise AudioError(path, error.strerror or str(error)) from None
    start, stop = (int(edge) for edge in segment)
    text = f"{os.path.realpath(path)}\0{status.st_size}\0{status.st_mtime_ns}\0{start}\0{stop}"
    key = hashlib.blake2b(text.encode("utf-8", "surrogateescape"), digest_size=16).hexdigest()
    return Clip(path, start, stop, key)


class _Place(NamedTuple):
    """Where a clip's rows are."""

    shard: Path
    first: int
    stop: int


class FeatureStore:
    """Features of clips: `[rows, layers, D]` each, a row a window or, for beats, a frame."""

    def __init__(
        self, root: str | os.PathLike, identity: dict[str, Any], limit: int, upstream: str = ""
    ):
        """Open the part of the cache that `identity` names.

        Args:
            root: the cache's folder.
            identity: what the features are.
            limit: bytes that the whole cache may hold.
            upstream: a name; kept with the identity as text, for who looks into the folder.
        """
        self.root = Path(root)
        digest = hashlib.blake2b(json.dumps(identity, sort_keys=True).encode(), digest_size=8)
        self.folder = self.root / digest.hexdigest()
        self._about = {"upstream": upstream, **identity}
        self._limit = limit
        self._places: dict[str, _Place] = {}
        self._arrays: dict[Path, np.ndarray] = {}
        self._noted: dict[Path, tuple[list[tuple[str, int]], str]] = {}
        self._waiting: list[tuple[str, np.ndarray]] = []
        self._in_use: set[str] = set()
        for index in sorted(self.folder.glob("*.json")):
            if index.name != _ABOUT and not index.name.startswith("."):
                self._read_index(index)

    def _read_index(self, index: Path) -> None:
        try:
            found = json.loads(index.read_text(encoding="utf-8"))
            clips = [(str(key), int(count)) for key, count in found["clips"]]
            self._take_shard(index.with_suffix(".npy"), clips, str(found["checksum"]))
        except FileNotFoundError:  # another process has made room
            return
        except (ValueError, TypeError, KeyError, RecursionError):
            self._drop(index.with_suffix(".npy"))

    def _take_shard(self, shard: Path, clips: list[tuple[str, int]], noted: str) -> None:
        self._noted[shard] = clips, noted
        first = 0
        for key, count in clips:
            self._places[key] = _Place(shard, first, first + count)
            first += count

    def _drop(self, shard: Path) -> None:
        """Remove a damaged shard, and forget what was in it."""
        logger.warning("%s: damaged; the features in it are computed again", shard)
        _remove(shard)
        self._forget(shard)

    def _forget(self, shard: Path) -> None:
        self._arrays.pop(shard, None)
        self._places = {key: place for key, place in self._places.items() if place.shard != shard}

    def __contains__(self, key: str) -> bool:
        """Whether a clip's features are there, and whole."""
        return key in self._places and self._open(self._places[key].shard)

    def _open(self, shard: Path) -> bool:
        """Map a shard, for as long as this store is; whether it is whole."""
        if shard in self._arrays:
            return True
        try:
            header, size = header_of(shard), shard.stat().st_size
            whole = header is not None and header.size == size and len(header.shape) == 3
            clips, noted = self._noted[shard]
            if whole and _checksum(shard, clips) == noted:
                self._map(shard)
                return True
        except FileNotFoundError:  # another process has made room
            _remove(shard)
            self._forget(shard)
            return False
        self._drop(shard)
        return False

    def _map(self, shard: Path) -> None:
        self._arrays[shard] = np.load(shard, mmap_mode="r", allow_pickle=False)
        with contextlib.suppress(OSError):  # somebody else's cache, to read only
            os.utime(shard)  # what was used last is thrown away last

    def rows(self, key: str) -> np.ndarray:
        """A clip's features, mapped from the file: `[rows, layers, D]`. It must be there."""
        place = self._places[key]
        return self._arrays[place.shard][place.first : place.stop]

    def use(self, keys: Iterable[str]) -> None:
        """Say that these clips are wanted as long as this store is: they are not deleted by it."""
        self._in_use.update(keys)

    def make_room(self, needed: int) -> None:
        """Delete what was not used for longest until `needed` bytes fit; never what is in use.

        Raises:
            InputError: if `needed` and what is in use are more than the cache may hold.
        """
        own = {self._places[key].shard for key in self._in_use if key in self}
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
            _remove(file)
            total -= used[file].st_size
            self._forget(file)

    def add(self, key: str, features: np.ndarray) -> None:
        """Take a clip's features; they are on disk after the next `flush`, or when there is a
        shard's worth of them."""
        self._waiting.append((key, features))
        if sum(array.nbytes for _, array in self._waiting) >= _SHARD_BYTES:
            self.flush()

    def flush(self) -> None:
        """Write what is waiting.

        Raises:
            InputError: if it cannot be written, as on a full disk. What was written before is kept.
        """
        if not self._waiting:
            return
        try:
            self._write()
        except OSError as error:
            raise InputError(
                f"{error.filename or self.folder}: {error.strerror}: the cache of features cannot "
                "be written; make room, or set task.cache_dir to a disk that has some. What is in "
                "the cache is kept"
            ) from None
        self._waiting = []

    def _write(self) -> None:
        about = self.folder / _ABOUT
        if not about.exists():
            with atomic_path(about) as temporary:
                temporary.write_text(json.dumps(self._about, indent=2) + "\n", encoding="utf-8")
        shard = self.folder / f"{uuid.uuid4().hex}.npy"
        arrays = [array for _, array in self._waiting]
        rows = sum(len(array) for array in arrays)
        with atomic_path(shard) as temporary:
            with temporary.open("wb") as file:
                write_header(file, arrays[0].dtype, (rows, *arrays[0].shape[1:]))
                for array in arrays:
                    file.write(array.tobytes())
            clips = [(key, len(array)) for key, array in self._waiting]
            noted = _checksum(temporary, clips)
        try:
            with atomic_path(shard.with_suffix(".json")) as temporary:
                index = json.dumps({"checksum": noted, "clips": clips})
                temporary.write_text(index, encoding="utf-8")
        except OSError:
            _remove(shard)
            raise
        self._take_shard(shard, clips, noted)
        self._map(shard)


def _checksum(shard: Path, clips: list[tuple[str, int]]) -> str:
    """Of a shard and of what its index says."""
    both = json.dumps([checksum(shard), clips])
    return hashlib.blake2b(both.encode(), digest_size=16).hexdigest()


def _remove(shard: Path) -> None:
    shard.with_suffix(".json").unlink(missing_ok=True)
    shard.unlink(missing_ok=True)
