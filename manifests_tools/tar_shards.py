"""Write tar shards of 16 kHz FLAC in the layout of webdataset, and their lines of a manifest.

A shard `train-000003.tar` holds for each track `KEY.flac`, `KEY.json` (the source's `name` below
the root, and `num_samples`) and, with labels, `KEY.km` (its units as text). KEY is the track's
place in its manifest, in nine digits.
"""

import io
import json
import os
import re
import tarfile
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from manifests_tools.convert import ABANDONED_SECONDS, encode_flac, follows
from manifests_tools.examine import ExaminedTrack, chunks, parallel_map
from music_ssl_fairseq import audio
from music_ssl_fairseq.data.audio_identity import other_track
from music_ssl_fairseq.data.label_metadata import (
    label_again,
    read_label_rate,
    read_metadata,
    require_unchanged,
    split_record,
)
from music_ssl_fairseq.data.label_store import LabelStore
from music_ssl_fairseq.data.left_out import LeftOut
from music_ssl_fairseq.errors import AudioError, InputError, warn
from music_ssl_fairseq.frames import SAMPLE_RATE, label_hop, labels_fit
from music_ssl_fairseq.jobs.shards import cut
from music_ssl_fairseq.runtime.files import atomic_path, remove_temporary

SHARD_HOURS = 14.0
"""Hours of music per shard: some 1 GB."""


@dataclass(frozen=True)
class _Shard:
    """Contents of a shard: tracks, the first one's place in the manifest, and their labels."""

    file: Path
    first: int
    tracks: list[ExaminedTrack]
    labels: Path | None


Lines = dict[str, tuple[str, int]]
"""Lines of a manifest: name of the source -> name of the copy, and its samples."""


def write_shards(
    root: str,
    folder: str,
    splits: dict[str, list[ExaminedTrack]],
    labels: str | None,
    shard_hours: float,
    workers: int,
) -> tuple[Lines, list[LeftOut]]:
    """Write the tracks of each split, in their order, to shards; keep finished ones.

    The folder `labels`, if given, has the labels of these tracks.

    Raises InputError if a shard cannot be written, or the labels are not those of these tracks.

    Returns the source's name -> name of the copy, relative to `folder`, and its samples; and
    tracks that cannot be read.
    """
    jobs = []
    for split, tracks in splits.items():
        file = Path(labels, f"{split}.km") if labels is not None else None
        if file is not None:
            _check_labels(file, tracks)
        lengths = np.array([track.num_samples for track in tracks])
        size = max(1, round(shard_hours * 3600 * SAMPLE_RATE))
        for number, part in enumerate(cut(lengths, size)):
            name = f"{split}-{number:06d}.tar"
            own = tracks[part.start : part.stop]
            jobs.append(_Shard(Path(folder, name), part.start, own, file))
    lines: Lines = {}
    left_out: list[LeftOut] = []
    write = partial(_write, root=root)
    for of_shard, unreadable in parallel_map(write, jobs, workers, "writing shards", 1):
        lines |= of_shard
        left_out += unreadable
    remove_temporary(Path(folder), ABANDONED_SECONDS)
    if labels is not None and left_out:
        raise InputError(
            f"{os.path.join(root, left_out[0].name)}: {left_out[0].reason}, so that the labels in "
            f"{labels} have a line too many: leave out --labels, and label the shards"
        )
    _warn_of_others(Path(folder), {job.file for job in jobs}, splits)
    return lines, left_out


def _check_labels(file: Path, tracks: list[ExaminedTrack]) -> None:
    store = LabelStore(file)
    rate = read_label_rate(file.parent)
    lengths = np.array([track.num_samples for track in tracks])
    if rate is None:
        raise InputError(f"{file.parent}: has no metadata.json with a label_rate")
    if len(store) == len(tracks) and not store.counts.all():
        line = int(np.argmin(store.counts))
        raise InputError(
            f"{file}: line {line + 1} has no units, because {tracks[line].name} could not be read, "
            "and shards leave it out: leave out --labels, and label the shards"
        )
    record = split_record(read_metadata(file.parent), file.parent, file.stem)
    require_unchanged(file.parent, record)
    noted = record.get("names")
    fit = len(store) == len(tracks) and np.all(labels_fit(store.counts, lengths, label_hop(rate)))
    if not fit or other_track(lambda i: tracks[i].name, len(tracks), noted) is not None:
        raise InputError(
            f"{file}: its {len(store)} lines are not the labels of the {len(tracks)} tracks found; "
            f"make manifests of the same folder without --shards, then {label_again(file.parent)}"
        )


def _write(job: _Shard, root: str) -> tuple[Lines, list[LeftOut]]:
    """Write a shard; return its lines, and the tracks that cannot be read."""
    store = LabelStore(job.labels) if job.labels is not None else None
    units = [store.units(job.first + i) if store else None for i in range(len(job.tracks))]
    texts = [None if u is None else (" ".join(map(str, u.tolist())) + "\n").encode() for u in units]
    finished = _finished(job, root, texts)
    if finished is not None:
        return finished, []
    left_out: list[LeftOut] = []
    try:
        with (
            atomic_path(job.file) as temporary,
            tarfile.open(temporary, "w", bufsize=1 << 20) as tar,
        ):
            for i, (track, text) in enumerate(zip(job.tracks, texts, strict=True)):
                try:
                    flac, num_samples = _encode(os.path.join(root, track.name), track.num_samples)
                except AudioError as error:
                    left_out.append(LeftOut(track.name, error.reason))
                    continue
                about = {"name": track.name, "num_samples": num_samples}
                key = f"{job.first + i:09d}"
                _add(tar, f"{key}.flac", flac)
                _add(tar, f"{key}.json", json.dumps(about).encode())
                if text is not None:
                    _add(tar, f"{key}.km", text)
    except OSError as error:
        raise InputError(f"{job.file}: cannot be written ({error.strerror or error})") from None
    return _read_back(job.file)[0], left_out


def _encode(path: str, num_samples: int) -> tuple[bytes, int]:
    """Return a file as FLAC, and its samples at 16 kHz."""
    memory = io.BytesIO()
    read = 0

    def waveforms():
        nonlocal read
        for start, stop in chunks(num_samples, SAMPLE_RATE):
            waveform = audio.read(path, start, stop - start)
            read += len(waveform)
            yield waveform

    encode_flac(memory, waveforms())
    return memory.getvalue(), read


def _add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    """Add a file; without times and owners, so that equal tracks give equal shards."""
    member = tarfile.TarInfo(name)
    member.size = len(data)
    tar.addfile(member, io.BytesIO(data))


def _finished(job: _Shard, root: str, texts: list[bytes | None]) -> Lines | None:
    """Return the lines of a shard that an earlier run wrote of the same tracks; or None."""
    try:
        lines, found = _read_back(job.file)
        written = job.file.stat().st_mtime_ns
        same = list(lines) == [track.name for track in job.tracks] and found == texts
        unchanged = same and all(
            follows(str(job.file.parent / place), written, os.path.join(root, name), num_samples)
            for name, (place, num_samples) in lines.items()
        )
    except (OSError, tarfile.TarError, ValueError, KeyError, TypeError, AudioError):
        return None
    return lines if unchanged else None


def _read_back(file: Path) -> tuple[Lines, list[bytes | None]]:
    """Read an existing shard: its manifest lines by source, and each track's labels, if any.

    A track is three members in this order: audio, `.json` with its source, text of its labels.
    """
    lines: Lines = {}
    texts: list[bytes | None] = []
    place = ""
    with tarfile.open(file) as tar:
        for member in tar:
            suffix = member.name.partition(".")[2]
            if suffix == "flac":
                place = f"{file.name}:{member.offset_data}:{member.size}"
                continue
            data = tar.extractfile(member).read()  # type: ignore[union-attr]
            if suffix == "json":
                about = json.loads(data)
                lines[about["name"]] = place, int(about["num_samples"])
                texts.append(None)
            else:
                texts[-1] = data
    return lines, texts


def _warn_of_others(folder: Path, written: set[Path], splits: dict[str, list]) -> None:
    """Warn of shards of an earlier run that no manifest names now, but a wildcard would find."""
    ours = re.compile(rf"({'|'.join(splits)})-\d{{6}}\.tar")
    others = sorted(file for file in folder.glob("*.tar") if ours.fullmatch(file.name))
    others = [file for file in others if file not in written]
    if others:
        warn(
            f"{others[0]}: {len(others)} shards of an earlier run that no manifest names: remove "
            "them"
        )
