"""Features on disk, so that an interrupted run goes on where it stopped.

`--pool mean`: `features.npy`, `[tracks, layers, D]` float32, a row for each track of the manifest
in its order. Rows are NaN until they are there, and stay so for a track that cannot be read.

`--pool frames`: `NAME.npy` for each track, `[layers, frames, D]`, where NAME is the track's name in
the manifest, with its suffix: `album/song.flac.npy`.

In both, `metadata.json` says what made them, and `index.tsv` lists the tracks.
"""

import contextlib
import json
import os
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from torch import Tensor

from music_ssl_fairseq.data.manifest import Manifest
from music_ssl_fairseq.errors import InputError
from music_ssl_fairseq.extract.batches import Cut
from music_ssl_fairseq.files import atomic_path
from music_ssl_fairseq.upstream.windows import Stitcher, Window

METADATA = "metadata.json"
INDEX = "index.tsv"
MEANS = "features.npy"
_UNFINISHED = "features.partial.npy"


class MeanStore:
    """One row a track: the mean over its frames, in each layer."""

    def __init__(self, folder: Path, cut: Cut, num_layers: int, dimension: int):
        self.cut = cut
        self._final = folder / MEANS
        self._working = self._final if self._final.exists() else folder / _UNFINISHED
        shape = (len(cut.manifest), num_layers, dimension)
        if not self._working.exists():
            with atomic_path(self._working) as temporary:
                rows = _create(temporary, np.float32, shape)
                rows[:] = np.nan
                rows.flush()
        self._rows = np.load(self._working, mmap_mode="r+")
        if self._rows.shape != shape:
            raise InputError(
                f"{self._working}: has shape {self._rows.shape}, expected {shape}; start over "
                "with --force"
            )
        self._sums: dict[int, Tensor] = {}

    def has(self, track: int) -> bool:
        """Whether the track's features are there. A row that was cut off still ends in NaN."""
        return not np.isnan(self._rows[track]).any()

    def add(self, track: int, window: Window, values: Tensor) -> None:
        """Add the track's next window, `[layers, D]`: its weighted sum over frames."""
        total = self._sums.pop(track, 0.0) + values.double()
        frames = self.cut.num_frames(track)
        if window.last < frames:
            self._sums[track] = total
        else:
            self._rows[track] = (total / frames).numpy()

    def leave_out(self, track: int) -> None:
        """Forget what there is of a track that cannot be read."""
        self._sums.pop(track, None)

    def close(self) -> None:
        """Keep what there is, for the run to be continued."""
        self._rows.flush()

    def finish(self) -> None:
        """Give the file its name, now that every track had its turn."""
        self._rows.flush()
        if self._working != self._final:
            os.replace(self._working, self._final)


class FrameStore:
    """One file a track: its frames, in each layer."""

    def __init__(self, folder: Path, cut: Cut, num_layers: int, dimension: int, dtype: str):
        self.folder = folder
        self.cut = cut
        self.dtype = np.dtype(dtype)
        self._sizes = (num_layers, dimension)
        self._open: dict[int, _OpenTrack] = {}

    def has(self, track: int) -> bool:
        """Whether the track's file is there; files appear under their name when complete."""
        return frame_file(self.folder, self.cut.manifest, track).exists()

    def add(self, track: int, window: Window, values: Tensor) -> None:
        """Add the track's next window, `[layers, frames, D]`."""
        if track not in self._open:
            layers, dimension = self._sizes
            shape = (layers, self.cut.num_frames(track), dimension)
            path = frame_file(self.folder, self.cut.manifest, track)
            self._open[track] = _OpenTrack(path, self.dtype, shape)
        if self._open[track].add(window, values):
            self._open.pop(track).close()

    def leave_out(self, track: int) -> None:
        """Remove what there is of a track that cannot be read."""
        if track in self._open:
            self._open.pop(track).discard()

    def close(self) -> None:
        """Remove the files of tracks that are not complete."""
        while self._open:
            self._open.popitem()[1].discard()

    def finish(self) -> None:
        """Every track had its turn."""
        self.close()


class _OpenTrack:
    """A file that grows window by window; mapped, so that no track has to fit into memory."""

    def __init__(self, path: Path, dtype: np.dtype, shape: tuple[int, int, int]):
        self._stack = contextlib.ExitStack()
        self._array = _create(self._stack.enter_context(atomic_path(path)), dtype, shape)
        self._stitcher = Stitcher()

    def add(self, window: Window, values: Tensor) -> bool:
        """Whether the track is complete."""
        ready = self._stitcher.add(window, values.float())
        stop = window.first + window.done
        self._array[:, window.first : stop] = ready.numpy().astype(self._array.dtype)
        return stop == self._array.shape[1]

    def close(self) -> None:
        self._array.flush()
        self._stack.close()

    def discard(self) -> None:
        with contextlib.suppress(_Discarded), self._stack:
            raise _Discarded


class _Discarded(Exception):
    """Makes `atomic_path` remove its temporary file."""


def _create(path: Path, dtype: Any, shape: tuple[int, ...]) -> np.memmap:
    return np.lib.format.open_memmap(path, mode="w+", dtype=dtype, shape=shape)


def frame_file(folder: Path, manifest: Manifest, track: int) -> Path:
    """Where `--pool frames` puts a track.

    Raises:
        InputError: if its name in the manifest leads out of the folder.
    """
    name = manifest.name(track)
    if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
        raise InputError(
            f"{manifest.file}, line {track + 2}: {name!r} leads out of the manifest's root, so its "
            "features would lie outside of --out; make the manifest from a folder above"
        )
    return folder / f"{name}.npy"


def open_folder(
    folder: Path,
    manifest: Manifest,
    settings: Mapping[str, Any],
    remarks: Mapping[str, Any],
    force: bool,
) -> None:
    """Prepare a folder for features of these settings, or go on in it.

    Args:
        remarks: what metadata.json is to say besides, and may be different next time.

    Raises:
        InputError: if it holds features of other settings and `force` is not given.
    """
    file = folder / METADATA
    if force:
        _remove(folder, manifest)
    elif file.exists():
        try:
            found = json.loads(file.read_text(encoding="utf-8"))
        except ValueError:
            raise InputError(f"{file}: damaged; start over with --force") from None
        for name, value in settings.items():
            if found.get(name) != value:
                raise InputError(
                    f"{folder}: holds features with {name} = {found.get(name)!r}, not {value!r}: "
                    "choose another --out, or overwrite them with --force"
                )
    with atomic_path(file) as temporary:
        metadata = json.dumps({**remarks, **settings}, indent=2) + "\n"
        temporary.write_text(metadata, encoding="utf-8")


def write_index(folder: Path, manifest: Manifest, cut: Cut) -> None:
    """`row<TAB>name<TAB>frames`, with that as the first line."""
    with atomic_path(folder / INDEX) as temporary, temporary.open("wb") as file:
        file.write(b"row\tname\tframes\n")
        for track in range(len(manifest)):
            name = os.fsencode(manifest.name(track))
            file.write(b"%d\t%s\t%d\n" % (track, name, cut.num_frames(track)))


def _remove(folder: Path, manifest: Manifest) -> None:
    for name in (MEANS, _UNFINISHED, METADATA, INDEX):
        (folder / name).unlink(missing_ok=True)
    for track in range(len(manifest)):
        frame_file(folder, manifest, track).unlink(missing_ok=True)
