"""Whether a validation split can tell anything."""

import os

from music_ssl_fairseq.data.manifest import Manifest
from music_ssl_fairseq.frames import SAMPLE_RATE

FEW_MINUTES = 10


def concerns(valid: Manifest) -> list[str]:
    """What makes the figures of a validation split doubtful: a sentence each, or none."""
    found = []
    minutes = float(valid.num_samples.sum()) / SAMPLE_RATE / 60
    if minutes < FEW_MINUTES:
        found.append(
            f"{valid.file}: holds {minutes:.1f} minutes of music; below {FEW_MINUTES} minutes, "
            "validation figures follow chance: add music, or make the manifests with a larger "
            "--valid-share"
        )
    folder = os.path.dirname(valid.name(0))
    if all(os.path.dirname(valid.name(i)) == folder for i in range(1, len(valid))):
        printable = os.fsencode(folder).decode("utf-8", "backslashreplace") or "the root"
        found.append(
            f"{valid.file}: holds a single folder ({printable}), and validation figures speak of "
            "it alone: make the manifests with a larger --valid-share, or another --group-by"
        )
    return found
