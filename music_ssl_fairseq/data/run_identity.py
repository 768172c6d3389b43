"""Identify a run by its data and by the settings that decide its result.

A checkpoint carries its identity, a dict of texts. A run may continue another if their identities
agree. Paths of audio and labels are not part of it, so that data may be moved; nor are settings of
speed and length.
"""

import hashlib
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from music_ssl_fairseq.data.label_metadata import read_metadata
from music_ssl_fairseq.data.manifest import Manifest
from music_ssl_fairseq.frames import hours
from music_ssl_fairseq.runtime.settings import may_change

Identity = dict[str, str]

_MAX_SHOWN = 3


def settings_identity(
    groups: Mapping[str, Mapping[str, Any]], configs: Mapping[str, type]
) -> Identity:
    """Return every setting that decides the result.

    `groups` are the values of `model`, `task` and so on, and `configs` their dataclasses, which
    declare what is `changeable`. Settings of other groups (optimization, dataset, ...) all may.
    """
    return {
        f"{group}.{name}": str(value)
        for group, values in groups.items()
        for name, value in values.items()
        if not may_change(configs.get(group, object), name)
    }


def manifest_identity(manifest: Manifest) -> Identity:
    """Digest names and lengths of the tracks in their order, without their folder."""
    with manifest.file.open("rb") as handle:
        handle.readline()
        digest = digest_of(line.rstrip(b"\r\n") + b"\n" for line in handle)
    duration = hours(manifest.num_samples)
    return {manifest.file.name: f"{len(manifest)} tracks of {duration:.3g} h [{digest}]"}


def label_identity(folder: str | os.PathLike, splits: Iterable[str], label_rate: float) -> Identity:
    """Digest dictionary and labels per split that has any, with k and features in metadata.json."""
    metadata = read_metadata(folder)
    about = [f"k={metadata['k']}"] if "k" in metadata else []
    about += [str(metadata["features"])] if "features" in metadata else []
    files = [Path(folder, f"{split}.km") for split in splits]
    found = {}
    for file in [file for file in files if file.exists()]:
        digest = digest_of(contents_of(Path(folder, "dict.km.txt"), file))
        found[file.name] = " ".join([*about, f"{label_rate:g} a second [{digest}]"])
    return found


def differences(here: Identity, there: Mapping[str, str]) -> str:
    """Describe the differences in entries of both; empty if there are none."""
    words = [
        f"{name} is {value} and was {there[name]}"
        for name, value in here.items()
        if name in there and there[name] != value
    ]
    more = [f"and {len(words) - _MAX_SHOWN} more"] if len(words) > _MAX_SHOWN else []
    return "; ".join([*words[:_MAX_SHOWN], *more])


def digest_of(parts: Iterable[bytes]) -> str:
    """Hash the concatenated parts to 16 hex digits."""
    found = hashlib.blake2b(digest_size=8)
    for part in parts:
        found.update(part)
    return found.hexdigest()


def contents_of(*files: Path) -> Iterable[bytes]:
    """Iterate over the bytes of files, each with its length before it."""
    for file in files:
        yield f"{file.stat().st_size} ".encode()
        with file.open("rb") as handle:
            while block := handle.read(1 << 20):
                yield block
