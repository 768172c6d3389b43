"""Store features on disk, so that an interrupted run resumes.

`--pool mean`: `features.npy`, `[tracks, layers, D]` float32, a row per track of the manifest,
in its order. Rows are NaN until they are computed, and stay so for a track that cannot be read.
Until every track was processed it is called `features.partial.npy`.

`--pool frames`: `NAME.npy` for each track, `[layers, frames, D]`, where NAME is the track's name in
the manifest, with its suffix: `album/song.flac.npy`.

In both, `checksums.npy` says which tracks are complete (`row_file.Checksums`),
`metadata.json` what made them, and `index.tsv` lists the tracks.
"""

import contextlib
import json
import os
from collections.abc import Iterator, Mapping
from hashlib import blake2b
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from music_ssl_fairseq.data.audio_identity import audio_identity, changed_audio
from music_ssl_fairseq.data.manifest import Manifest
from music_ssl_fairseq.errors import InputError, warn
from music_ssl_fairseq.extract.batches import Cut
from music_ssl_fairseq.extract.row_file import CHECKSUMS, Checksums, RowFile
from music_ssl_fairseq.runtime.files import (
    atomic_path,
    remove_temporary,
    temporary_beside,
    write_json,
)
from music_ssl_fairseq.runtime.metadata import METADATA, matching_metadata
from music_ssl_fairseq.runtime.npy import whole_array, write_header
from music_ssl_fairseq.runtime.user_command import with_option
from music_ssl_fairseq.upstream.windows import Window, add_share

INDEX = "index.tsv"
MEANS = "features.npy"
_UNFINISHED = "features.partial.npy"
_MAX_NAME_BYTES = 255 - len(".npy")
_WAY_OUT = "--out writes elsewhere; --force would replace them"


class Store:
    """Base of both kinds of store; `sizes` are the numbers of layers and of values."""

    damaged: list[int]  # tracks that existed, but incomplete, when the store was opened

    def __init__(self, folder: Path, cut: Cut, sizes: tuple[int, int], checksums: Checksums):
        self.folder = folder
        self.cut = cut
        self._sizes = sizes
        self._checksums = checksums
        self._there = np.zeros(len(cut.manifest), bool)
        self.left_out: dict[int, str] = {}  # reasons

    def has(self, track: int) -> bool:
        """Return whether the track's features are complete."""
        return bool(self._there[track])

    def _remove_damaged(self) -> list[int]:
        """Find the complete tracks; remove the incomplete ones, and return them."""
        damaged = []
        for track in range(len(self._there)):
            self._there[track] = self._is_complete(track)
            if self._there[track]:
                continue
            if self._remove(track) or self._checksums.noted(track)[0]:
                self._checksums.clear(track)
                damaged.append(track)
        return damaged

    def leave_out(self, track: int, reason: str) -> None:
        """Note the first reason why a track has no features, and discard its windows."""
        self.left_out.setdefault(track, reason)
        self._discard(track)

    def add(self, track: int, window: Window, values: Tensor) -> None:
        """Add the track's next window."""
        raise NotImplementedError

    def _discard(self, track: int) -> None:
        """Forget the windows of a track that were added."""
        raise NotImplementedError

    def _is_complete(self, track: int) -> bool:
        """Compare a track's features with their checksum."""
        raise NotImplementedError

    def _remove(self, track: int) -> bool:
        """Remove all that is stored of a track; return whether there was any."""
        raise NotImplementedError


class MeanStore(Store):
    """Store one row per track: the mean over its frames, in each layer."""

    def __init__(self, folder: Path, cut: Cut, sizes: tuple[int, int], checksums: Checksums):
        super().__init__(folder, cut, sizes, checksums)
        self._final = folder / MEANS
        self._working = self._final if self._final.exists() else folder / _UNFINISHED
        remove_temporary(folder)
        shape = (len(cut.manifest), *sizes)
        self._rows = RowFile(self._working, np.dtype(np.float32), shape, np.nan)
        self._sums: dict[int, Tensor] = {}
        self.damaged = self._remove_damaged()
        if self.damaged and self._working == self._final:
            self._working = folder / _UNFINISHED
            os.replace(self._final, self._working)

    def _is_complete(self, track: int) -> bool:
        noted, _ = self._checksums.noted(track)
        return noted != 0 and noted == self._checksums.of([self._rows[track]])

    def _remove(self, track: int) -> bool:
        return self._rows.clear(track)

    def add(self, track: int, window: Window, values: Tensor) -> None:
        """Add the track's next window, `[layers, D]`: its weighted sum over frames."""
        total = self._sums.pop(track, 0.0) + values.double()
        frames = self.cut.num_frames(track)
        if window.last < frames:
            self._sums[track] = total
        else:
            row = (total / frames).float().numpy()
            self._rows[track] = row
            self._checksums.note(track, self._checksums.of([row.tobytes()]))

    def _discard(self, track: int) -> None:
        self._sums.pop(track, None)

    def close(self) -> None:
        """Close the files; the run can resume."""
        self._rows.close()
        self._checksums.close()

    def finish(self) -> None:
        """Give the file its final name, after every track was processed."""
        if self._working != self._final:
            os.replace(self._working, self._final)


class FrameStore(Store):
    """Store one file per track: its frames, in each layer."""

    def __init__(
        self, folder: Path, cut: Cut, sizes: tuple[int, int], checksums: Checksums, dtype: str
    ):
        super().__init__(folder, cut, sizes, checksums)
        self.dtype = np.dtype(dtype)
        self._open: dict[int, _OpenTrack] = {}
        self._new: dict[int, int] = {}
        tracks = range(len(cut.manifest))
        for parent in {folder, *(self._file(track).parent for track in tracks)}:
            remove_temporary(parent)
        self.damaged = self._remove_damaged()

    def _file(self, track: int) -> Path:
        return frame_file(self.folder, self.cut.manifest, track)

    def _shape(self, track: int) -> tuple[int, int, int]:
        layers, dimension = self._sizes
        return layers, self.cut.num_frames(track), dimension

    def _is_complete(self, track: int) -> bool:
        file = self._file(track)
        noted, changed = self._checksums.noted(track)
        found = whole_array(file) if noted else None
        if found is None or (found.dtype, found.shape) != (self.dtype, self._shape(track)):
            return False
        # Unchanged since it was on disk for good: reading hundreds of GB would take minutes.
        if file.stat().st_mtime_ns == changed:
            return True
        if noted != self._checksums.of(blake2b(layer).digest() for layer in found):
            return False
        self._settle(track, noted)
        return True

    def _remove(self, track: int) -> bool:
        there = self._file(track).exists()
        self._file(track).unlink(missing_ok=True)
        return there

    def _settle(self, track: int, checksum: int) -> None:
        """Record the time of a file's last change, once the disk has all of it."""
        with self._file(track).open("rb+") as file:
            os.fsync(file.fileno())
            self._checksums.note(track, checksum, os.fstat(file.fileno()).st_mtime_ns)

    def add(self, track: int, window: Window, values: Tensor) -> None:
        """Add the track's next window, `[layers, frames, D]`."""
        if track not in self._open:
            self._open[track] = _OpenTrack(self._file(track), self.dtype, self._shape(track))
        if self._open[track].add(window, values):
            self._new[track] = self._checksums.of(self._open[track].close())
            del self._open[track]
            self._checksums.note(track, self._new[track])

    def _discard(self, track: int) -> None:
        if track in self._open:
            self._open.pop(track).discard()

    def close(self) -> None:
        """Remove the files of tracks that are not complete."""
        for track in list(self._open):
            self._discard(track)
        self._checksums.close()

    def finish(self) -> None:
        """Record the new files, after every track was processed."""
        for track, checksum in self._new.items():
            self._settle(track, checksum)


class _OpenTrack:
    """A file that grows window by window, so that no track has to fit into memory."""

    def __init__(self, path: Path, dtype: np.dtype, shape: tuple[int, int, int]):
        self._dtype = dtype
        self._shape = shape
        self._sums = [blake2b() for _ in range(shape[0])]
        self._begun = torch.zeros(shape[0], 0, shape[2])  # of frames that the next window shares
        self._path = path
        self._temporary = temporary_beside(path)
        self._file = self._temporary.open("wb")
        self._begin = write_header(self._file, dtype, shape)

    def add(self, window: Window, values: Tensor) -> bool:
        """Write the frames that are final; return whether the track is complete."""
        frames = F.pad(self._begun, (0, 0, 0, window.num_frames - self._begun.size(1)))
        add_share(frames, window.first, window, values.float())
        ready, self._begun = frames[:, : window.done], frames[:, window.done :].clone()
        for layer, frames in enumerate(ready.numpy().astype(self._dtype)):
            row = layer * self._shape[1] + window.first
            self._file.seek(self._begin + row * self._shape[2] * self._dtype.itemsize)
            self._file.write(frames.tobytes())
            self._sums[layer].update(frames.tobytes())
        return window.first + window.done == self._shape[1]

    def close(self) -> Iterator[bytes]:
        """Give the file its name; return the layers' digests."""
        self._file.close()
        os.replace(self._temporary, self._path)
        return (found.digest() for found in self._sums)

    def discard(self) -> None:
        """Remove the file."""
        with contextlib.suppress(OSError):  # on a full disk, what is still to be written
            self._file.close()
        self._temporary.unlink(missing_ok=True)


def frame_file(folder: Path, manifest: Manifest, track: int) -> Path:
    """Return the file of a track with `--pool frames`.

    Raises InputError if its name in the manifest leads out of the folder, or is too long.
    """
    name = manifest.name(track)
    if len(os.fsencode(PurePosixPath(name).name)) > _MAX_NAME_BYTES:
        raise InputError(
            f"{manifest.file}, line {track + 2}: {name!r}: too long a name for a file of features, "
            "NAME.npy; give --pool mean, or rename the track",
            with_option("--pool", "mean"),
        )
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
) -> Checksums:
    """Prepare a folder for features of these settings, or resume in it. The caller holds its lock.

    Raises InputError as `frame_file`, or if it holds features of other or unknown settings, unless
    `force`.

    Args:
        settings: that the features depend on, for metadata.json.
        remarks: its other entries, which may differ next time.
        force: remove the features in it first.

    Returns:
        The checksums of the features that exist already.
    """
    for track in range(len(manifest)) if settings["pool"] == "frames" else ():
        frame_file(folder, manifest, track)  # refuses, before anything is written
    if force:
        for name in (METADATA, INDEX, CHECKSUMS):
            (folder / name).unlink(missing_ok=True)
        for file in _outputs(folder, manifest):
            file.unlink()
        noted = None
    else:
        outputs = _outputs(folder, manifest)
        metadata = matching_metadata(folder, settings, "features", outputs, _WAY_OUT)
        noted = metadata.get("audio")
        warn(changed_audio(manifest, noted, "features were"))
    audio = noted or audio_identity(manifest)
    write_json(folder / METADATA, {**remarks, "audio": audio, **settings})
    return Checksums(folder, len(manifest), json.dumps(settings, sort_keys=True))


def _outputs(folder: Path, manifest: Manifest) -> Iterator[Path]:
    """Yield the files of features that exist, of either kind."""
    entries = set(os.listdir(folder))
    yield from (folder / name for name in (MEANS, _UNFINISHED) if name in entries)
    for track in range(len(manifest)):
        name = f"{manifest.name(track)}.npy"
        # A file system far away is not asked about each of a hundred thousand tracks.
        if name.partition("/")[0] in entries and (folder / name).is_file():
            yield frame_file(folder, manifest, track)


def write_index(folder: Path, manifest: Manifest, cut: Cut) -> None:
    """Write lines `row<TAB>name<TAB>frames`, with that as the first line."""
    with atomic_path(folder / INDEX) as temporary, temporary.open("wb") as file:
        file.write(b"row\tname\tframes\n")
        for track in range(len(manifest)):
            name = os.fsencode(manifest.name(track))
            file.write(b"%d\t%s\t%d\n" % (track, name, cut.num_frames(track)))
