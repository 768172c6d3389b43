"""The cache of features: computed once for an upstream and a kind of window, then only read.

A folder of shards for each (upstream, window, kind): `ID.npy` with the features of some dozens of
clips, and `ID.json` with their names in the cache, written last, so that a shard without it does
not count. What is in one stays usable whatever happens to others, so an interrupted run goes on,
two runs may fill the cache at once, and tasks on the same audio share it.
"""

import hashlib
import json
import os
import uuid
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from music_ssl_fairseq.data.manifest import Manifest
from music_ssl_fairseq.errors import AudioError, InputError
from music_ssl_fairseq.files import atomic_path

_SHARD_BYTES = 64 * 2**20


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
        self._places: dict[str, tuple[Path, int, int]] = {}
        self._arrays: dict[Path, np.ndarray] = {}
        self._waiting: list[tuple[str, np.ndarray]] = []
        self._in_use: set[str] = set()
        for index in sorted(self.folder.glob("*.json")):
            if index.name != "about.json":
                self._read_index(index)

    def _read_index(self, index: Path) -> None:
        array = index.with_suffix(".npy")
        if not array.exists():
            return
        first = 0
        for key, count in json.loads(index.read_text(encoding="utf-8")):
            self._places[key] = (array, first, count)
            first += count

    def __contains__(self, key: str) -> bool:
        return key in self._places

    def rows(self, key: str) -> np.ndarray:
        """A clip's features, mapped from the file: `[rows, layers, D]`."""
        file, first, count = self._places[key]
        if file not in self._arrays:
            self._arrays[file] = np.load(file, mmap_mode="r")
            os.utime(file)  # what was used last is thrown away last
        return self._arrays[file][first : first + count]

    def use(self, keys: Iterable[str]) -> None:
        """Say that these clips are wanted as long as this store is: they are not deleted by it."""
        self._in_use.update(keys)

    def make_room(self, needed: int) -> None:
        """Delete what was not used for longest until `needed` bytes fit; never what is in use.

        Raises:
            InputError: if `needed` and what is in use are more than the cache may hold.
        """
        own = {self._places[key][0] for key in self._in_use if key in self._places}
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
            file.with_suffix(".json").unlink(missing_ok=True)
            file.unlink(missing_ok=True)
            total -= used[file].st_size
            self._places = {k: place for k, place in self._places.items() if place[0] != file}

    def add(self, key: str, features: np.ndarray) -> None:
        """Take a clip's features; they are on disk after the next `flush`, or when there is a
        shard's worth of them."""
        self._waiting.append((key, features))
        if sum(array.nbytes for _, array in self._waiting) >= _SHARD_BYTES:
            self.flush()

    def flush(self) -> None:
        """Write what is waiting."""
        if not self._waiting:
            return
        about = self.folder / "about.json"
        if not about.exists():
            with atomic_path(about) as temporary:
                temporary.write_text(json.dumps(self._about, indent=2) + "\n", encoding="utf-8")
        index = self.folder / f"{uuid.uuid4().hex}.json"
        with atomic_path(index.with_suffix(".npy")) as temporary:
            np.save(temporary, np.concatenate([array for _, array in self._waiting]))
        counts = [(key, len(array)) for key, array in self._waiting]
        with atomic_path(index) as temporary:
            temporary.write_text(json.dumps(counts), encoding="utf-8")
        self._waiting = []
        self._read_index(index)
