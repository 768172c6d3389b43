"""Read `metadata.json` of a folder of labels: rate, splits, and the command that makes them."""

import os
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from music_ssl_fairseq.errors import InputError
from music_ssl_fairseq.runtime.files import checksum
from music_ssl_fairseq.runtime.metadata import METADATA
from music_ssl_fairseq.runtime.texts import quoted, read_object
from music_ssl_fairseq.runtime.user_command import beside, with_setting

_MAX_LABEL_RATE = 16_000  # labels per second: one per sample


def read_metadata(label_dir: str | os.PathLike) -> dict:
    """Read the labeler's metadata; empty if there is no such file."""
    file = Path(label_dir) / METADATA
    return read_object(file, "label again") if file.exists() else {}


def split_record(metadata: dict, label_dir: str | os.PathLike, split: str) -> dict[str, Any]:
    """Return what a folder's `read_metadata` says of a split; `unreadable` lists tracks.

    Raises InputError if the metadata are damaged.
    """
    splits = metadata.get("splits", {})
    record = splits.get(split, {}) if isinstance(splits, dict) else None
    tracks = record.get("unreadable", []) if isinstance(record, dict) else None
    if not isinstance(tracks, list) or not all(type(track) is int for track in tracks):
        raise InputError(
            f"{Path(label_dir) / METADATA}: `splits` does not say which tracks of {split} could "
            "not be read; label again"
        )
    return {"unreadable": tracks, **(record or {})}


def changed_files(label_dir: str | os.PathLike, record: dict) -> Iterator[Path]:
    """Yield the files of a split that are missing, or are not as the labeler wrote them.

    `record` is the split's in the metadata; that of older labels has no checksums.
    """
    checksums = record.get("sha256")
    for name, recorded in checksums.items() if isinstance(checksums, dict) else ():
        file = Path(label_dir, name)
        if not file.is_file() or checksum(file) != recorded:
            yield file


def labels_beside(manifests: str | os.PathLike) -> Path:
    """Return where labels go: manifests/jazz -> labels/jazz, jazz -> jazz_labels.

    Not always ./labels, which may be of other music.
    """
    folder = Path(manifests)
    parts = list(folder.parts)
    if "manifests" not in parts:
        return folder.with_name(f"{folder.name}_labels")
    parts[len(parts) - 1 - parts[::-1].index("manifests")] = "labels"
    return Path(*parts)


def label_command(
    label_dir: str | os.PathLike,
    manifests: str | os.PathLike | None = None,
    into: str | os.PathLike = "",
    options: str = "--k 500",
) -> str:
    """Return the command that makes labels, with paths and options in use, for a message.

    Args:
        label_dir: its --labels.
        into: another folder to write to.
        manifests: its --manifests; None for the manifests that the labels were made from.
        options: for labels that do not exist; existing labels repeat their own.
    """
    metadata = _known_metadata(label_dir)
    command = f"python -m music_ssl_fairseq label {metadata.get('options', options)}"
    manifests = manifests or _manifests_of(label_dir, metadata)
    for option, folder in (("manifests", manifests), ("labels", into or label_dir)):
        if Path(folder).absolute() != Path(option).absolute():
            command += f" --{option} {shlex.quote(str(folder))}"
    return command


def label_again(label_dir: str | os.PathLike, manifests: str | os.PathLike | None = None) -> str:
    """Return the command that makes labels again; empty if their options are not known.

    Labels of other manifests stay: the command writes beside them.
    """
    metadata = _known_metadata(label_dir)
    if "options" not in metadata:
        return ""
    own = _manifests_of(label_dir, metadata)
    if manifests and "manifests" in metadata and own.absolute() != Path(manifests).absolute():
        return label_command(label_dir, manifests, beside(label_dir))
    return f"{label_command(label_dir, manifests)} --force"


def require_unchanged(
    label_dir: str | os.PathLike, record: dict, manifests: str | os.PathLike | None = None
) -> None:
    """Refuse files of a split that exist, and are not as the labeler wrote them."""
    for file in changed_files(label_dir, record):
        if file.exists():  # without a memory map the text is read
            raise InputError(
                f"{file}: not as the labeler wrote it: edited, damaged or of another K-means; this "
                f"makes it again. (To train on edited labels, remove {METADATA} and give "
                "task.label_rate)",
                label_again(label_dir, manifests).removesuffix(" --force"),
            )


def _manifests_of(label_dir: str | os.PathLike, metadata: dict) -> Path:
    """Return the folder of the manifests that labels were made from.

    A relative one was typed in the folder that the labels are in, or in this one.
    """
    own = str(metadata.get("manifests", "manifests"))
    beside = Path(os.path.normpath(Path(label_dir, "..", own)))
    return beside if beside.is_dir() else Path(own)


def _known_metadata(label_dir: str | os.PathLike) -> dict:
    try:
        return read_metadata(label_dir)
    except InputError:
        return {}


def read_label_rate(label_dir: str | os.PathLike) -> float | None:
    """Read the labels' rate, in labels per second, from the metadata; None if they have none.

    Raises InputError if the metadata cannot be read, or its rate is not a positive number.
    """
    rate = read_metadata(label_dir).get("label_rate")
    if rate is None:
        return None
    number = isinstance(rate, int | float) and not isinstance(rate, bool)
    if not (number and 0 < rate <= _MAX_LABEL_RATE):  # NaN is not
        raise InputError(
            f"{Path(label_dir) / METADATA}: label_rate {quoted(rate)} is not a rate in Hz"
        )
    return float(rate)


def choose_label_rate(label_dir: str | os.PathLike, given: float | None) -> float:
    """Return the labels' rate: the labeler's, or the one `given` for labels from elsewhere.

    Raises InputError if neither states a rate, or the two differ.
    """
    stated = read_label_rate(label_dir)
    file = Path(label_dir) / METADATA
    if stated is None:
        if given is None:
            reason = "has no label_rate" if file.exists() else "no such file"
            raise InputError(
                f"{file}: {reason}, so how many labels there are per second is not known; set "
                "task.label_rate (100 for MFCC labels, 50 for deep features)"
            )
        return given
    if given is not None and given != stated:
        raise InputError(
            f"task.label_rate is {given:g}, but {file} says {stated:g}; leave task.label_rate out",
            with_setting("task.label_rate="),
        )
    return stated
