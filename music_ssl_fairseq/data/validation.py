"""Warn of validation splits whose figures would mislead."""

import os

from music_ssl_fairseq.audio import parse_member
from music_ssl_fairseq.data.manifest import Manifest
from music_ssl_fairseq.errors import one_line
from music_ssl_fairseq.frames import hours

MIN_MINUTES = 10


def concerns(valid: Manifest) -> list[str]:
    """Return one sentence per reason to doubt a validation split's figures."""
    found = []
    minutes = 60 * hours(valid.num_samples)
    if minutes < MIN_MINUTES:
        found.append(
            f"{valid.file}: holds {minutes:.1f} minutes of music; below {MIN_MINUTES} minutes, "
            "validation figures follow chance: add music, or make the manifests with a larger "
            "--valid-share"
        )
    folder = os.path.dirname(valid.name(0))
    in_shards = parse_member(valid.name(0)) is not None  # which tell nothing of folders
    if not in_shards and all(
        os.path.dirname(valid.name(i)) == folder for i in range(1, len(valid))
    ):
        found.append(
            f"{valid.file}: holds a single folder ({one_line(folder) or 'the root'}), and "
            "validation figures speak of it alone: make the manifests with a larger --valid-share, "
            "or another --group-by"
        )
    return found
