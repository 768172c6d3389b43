"""What tells one run from another: its data, and the settings that decide its result.

An identity is a dict of texts that a checkpoint carries. Two runs may share a folder, and one may
continue the other, if theirs agree. Where audio and labels lie is no part of it, so that moved data
can still be continued with; nor is what changes the speed of a run, or its length.
"""

import hashlib
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from music_ssl_fairseq.data.manifest import Manifest
from music_ssl_fairseq.data.units import read_metadata
from music_ssl_fairseq.frames import SAMPLE_RATE

Identity = dict[str, str]

MAY_CHANGE = {
    "model": {"init_from", "precision", "fast", "upstream", "upstream_seed"},
    "task": {
        *("data", "label_dir", "label_rate", "max_unreadable", "rebuild_batches"),
        *("mask_prob", "mask_length", "conv_feature_layers"),  # copies of the model's
        *("cache_dir", "cache_limit_gb", "output_dir", "decoder", "save_seconds", "cpu"),
        *("upstream", "upstream_seed", "last_epoch", "expected"),
    },
    "criterion": {"stop_if_collapsed", "min_target_var", "min_pred_var"},
}
"""Settings that a run may be continued with other values of. Files are compared by what they hold,
and a probe's upstream by its fingerprint. Settings of other groups (optimization, dataset, common,
...) may all change."""

_SHOWN = 3


def settings_identity(groups: Mapping[str, Mapping[str, Any]]) -> Identity:
    """Every setting that decides the result.

    Args:
        groups: of `MAY_CHANGE`, the settings by name.
    """
    return {
        f"{group}.{name}": str(value)
        for group, settings in groups.items()
        for name, value in settings.items()
        if name not in MAY_CHANGE[group]
    }


def manifest_identity(manifest: Manifest) -> Identity:
    """Names and lengths of the tracks, in their order; not the folder that they are in."""
    with manifest.file.open("rb") as handle:
        handle.readline()
        digest = digest_of(line.rstrip(b"\r\n") + b"\n" for line in handle)
    hours = manifest.num_samples.sum() / SAMPLE_RATE / 3600
    return {manifest.file.name: f"{len(manifest)} tracks of {hours:.3g} h [{digest}]"}


def label_identity(folder: str | os.PathLike, splits: Iterable[str], label_rate: float) -> Identity:
    """All bytes of each split's labels and of their dictionary, and what the labeler says of them.

    Args:
        splits: those without a label file are left out.
    """
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
    """In words, what differs in what both state: empty if nothing does."""
    words = [
        f"{name} is {value} and was {there[name]}"
        for name, value in here.items()
        if name in there and there[name] != value
    ]
    more = [f"and {len(words) - _SHOWN} more"] if len(words) > _SHOWN else []
    return "; ".join([*words[:_SHOWN], *more])


def digest_of(parts: Iterable[bytes]) -> str:
    """16 hex digits of all parts, one after the other."""
    found = hashlib.blake2b(digest_size=8)
    for part in parts:
        found.update(part)
    return found.hexdigest()


def contents_of(*files: Path) -> Iterable[bytes]:
    """The bytes of files, each with its length before it."""
    for file in files:
        yield f"{file.stat().st_size} ".encode()
        with file.open("rb") as handle:
            while block := handle.read(1 << 20):
                yield block
