"""Join blocks of units into a split's labels: text for fairseq, and a memory map of the same.

Training takes the memory map (`data.label_store`) instead of the text, as long as it is no older.
"""

import os
from pathlib import Path

import numpy as np

from music_ssl_fairseq.data.label_store import memmap_files
from music_ssl_fairseq.errors import InputError
from music_ssl_fairseq.jobs.checkpoint_dir import CheckpointDir
from music_ssl_fairseq.label.nearest_centroid import unit_type
from music_ssl_fairseq.runtime.files import atomic_path
from music_ssl_fairseq.runtime.npy import write_header

_MONOTONOUS_SHARE = 0.8  # of a track's labels


class Joined:
    """Counts of a split's labels, track by track."""

    def __init__(self, k: int):
        self.counts = np.zeros(k, np.int64)  # `[k]` labels of each unit
        self.runs = 0  # stretches of equal labels, none longer than a track
        self.tracks = 0  # lines counted, empty ones included
        self.unreadable: list[int] = []  # tracks without labels because they could not be read
        self.monotonous: list[int] = []  # of which one unit has nearly all labels: silent, perhaps

    def add(self, units: np.ndarray) -> None:
        """Count one track: `[frames]` integers in [0, k)."""
        counts = np.bincount(units, minlength=len(self.counts))
        if len(units):
            self.runs += 1 + int(np.count_nonzero(np.diff(units)))
            if counts.max() > _MONOTONOUS_SHARE * len(units):
                self.monotonous.append(self.tracks)
        self.counts += counts
        self.tracks += 1

    def summary(self) -> dict[str, float]:
        """Return the figures for metadata.json.

        `perplexity` is the exponential of the entropy. `majority_share` is the accuracy of always
        guessing the most frequent unit. `mean_run_length` counts frames until the unit changes.
        """
        labels = int(self.counts.sum())
        shares = self.counts[self.counts > 0] / max(1, labels)
        return {
            "tracks": self.tracks,
            "labels": labels,
            "used_clusters": len(shares),
            "perplexity": round(float(np.exp(-(shares * np.log(shares)).sum())), 3),
            "majority_share": round(float(shares.max(initial=0)), 6),
            "mean_run_length": round(labels / max(1, self.runs), 3),
        }


def join(checkpoint_dir: CheckpointDir, name: str, num_blocks: int, target: Path, k: int) -> Joined:
    """Write `SPLIT.km`, `SPLIT.units.npy` and `SPLIT.offsets.npy`, in this order.

    `target` is the `.km`; the others are written beside it. One block of the job `name` is held at
    a time.

    Raises InputError if not a single track could be read.
    """
    lengths = [checkpoint_dir.load_lengths(name, number) for number in range(num_blocks)]
    offsets = np.cumsum(np.concatenate([[0], *lengths])).astype(np.int64)
    joined = Joined(k)
    words = [str(unit) for unit in range(k)]  # looked up in half the time of making them
    units_target, offsets_target = memmap_files(target)
    with (
        atomic_path(offsets_target) as offsets_file,
        atomic_path(units_target) as units_file,
        atomic_path(target) as text_file,
    ):
        np.save(offsets_file, offsets)
        # Not through a memory map, where a full disk kills the process without a message.
        with text_file.open("wb") as text, units_file.open("wb") as array:
            write_header(array, np.dtype(unit_type(k)), (int(offsets[-1]),))
            for number in range(num_blocks):
                block = checkpoint_dir.load_block(name, number)
                joined.unreadable += (joined.tracks + block.unreadable).tolist()
                array.write(block.values.tobytes())
                for units in np.split(block.values.ravel(), np.cumsum(block.lengths)[:-1]):
                    line = " ".join(map(words.__getitem__, units.tolist()))
                    text.write(line.encode() + b"\n")
                    joined.add(units)
        # Not older than the text, however long the system takes to write them.
        os.utime(units_file)
        os.utime(offsets_file)
        if len(joined.unreadable) == len(offsets) - 1:
            raise InputError(
                f"{target}: not written, as none of the {len(offsets) - 1} tracks "
                "can be read; is the folder that the manifest names there?"
            )
    return joined
