"""The label sets of a pre-training task: folders of units, opened and checked."""

import os
from collections.abc import Sequence
from typing import Any

from music_ssl_fairseq.data.label_check import check_labels
from music_ssl_fairseq.data.label_metadata import choose_label_rate, label_command
from music_ssl_fairseq.data.label_store import LabelStore
from music_ssl_fairseq.data.manifest import Manifest
from music_ssl_fairseq.data.run_identity import Identity, label_identity
from music_ssl_fairseq.data.units import LabelSet, UnitDictionary
from music_ssl_fairseq.errors import InputError
from music_ssl_fairseq.features import FRONT_ENDS
from music_ssl_fairseq.training.narration import shown

_LAST = "checkpoints/checkpoint_last.pt"
_LABELS_OF_EXAMPLES = {
    "k100": "--k 100",
    "k2000": "--k 2000",
    "mfcc_chroma": "--k 500 --features mfcc+chroma",
    "early_layer": "--k 500 --features deep --layer 3 "
    f"--checkpoint runs/music_hubert/k2000/{_LAST}",
    "k2000_iteration2": "--k 2000 --features deep --layer 6 "
    f"--checkpoint runs/music_hubert/k2000/{_LAST}",
    "deep": f"--k 500 --features deep --layer 10 --checkpoint runs/music2vec/harmonic/{_LAST}",
}
"""Folder of a recipe in examples/music_hubert: its options, equal to the header's (tested)."""


class LabelSets:
    """One dictionary, rate and folder per label set, in the order of `label_dir`.

    Args:
        label_dir: `task.label_dir`: a folder, a list of folders, or None.
        manifests: the manifests' folder, for the command that makes missing labels.
        label_rate: `task.label_rate`, for labels without metadata.

    Raises InputError if a folder is missing, is named twice, or its rate is unknown.
    """

    def __init__(self, label_dir: Any, manifests: str, label_rate: float | None):
        self.folders = _folders(label_dir)
        self.dictionaries = [
            UnitDictionary(os.path.join(d, "dict.km.txt"), _label_command(d, manifests))
            for d in self.folders
        ]
        self.rates = [choose_label_rate(d, label_rate) for d in self.folders]

    @property
    def classes_per_set(self) -> list[int]:
        """Classes of each set: units, and the special symbols of fairseq's dictionary."""
        return [len(units.dictionary) for units in self.dictionaries]

    def identity(self, splits: Sequence[str]) -> Identity:
        """Identify the labels of these splits."""
        found: Identity = {}
        for number, (folder, rate) in enumerate(zip(self.folders, self.rates, strict=True)):
            prefix = f"label set {number} " if len(self.folders) > 1 else ""
            labels = label_identity(folder, splits, rate)
            found |= {f"{prefix}{name}": value for name, value in labels.items()}
        return found

    def start_lines(self) -> list[str]:
        """Describe each set in a line."""
        counts = [len(u.dictionary) - u.dictionary.nspecial for u in self.dictionaries]
        sets = zip(self.folders, counts, self.rates, strict=True)
        return [f"labels: {shown(d)}, {k:,} units, {rate:g} per second" for d, k, rate in sets]

    def of_split(self, split: str, manifest: Manifest) -> list[LabelSet]:
        """Open a split's labels, and check them against its manifest."""
        found = []
        for folder, units, rate in zip(self.folders, self.dictionaries, self.rates, strict=True):
            store = LabelStore(os.path.join(folder, f"{split}.km"))
            check_labels(manifest, store, units, rate)
            found.append(LabelSet(store, units, rate))
        return found


def _label_command(folder: str, manifests: str) -> str:
    """Return the command that makes missing labels: of the folder's name, or else of MFCC."""
    name = os.path.basename(os.path.abspath(folder))
    options = _LABELS_OF_EXAMPLES.get(name, "--k 500")
    if name != "mfcc" and all(part in FRONT_ENDS for part in name.split("+")):
        options += f" --features {name}"
    return label_command(folder, manifests, options=options)


def _folders(label_dir: Any) -> list[str]:
    if label_dir is None or isinstance(label_dir, str):
        return [label_dir] if label_dir else []
    folders = list(label_dir) if isinstance(label_dir, Sequence) else [label_dir]
    if not all(isinstance(folder, str) for folder in folders):
        raise InputError(f"task.label_dir is {label_dir!r}: give a folder, or a list of folders")
    if len(set(map(os.path.realpath, folders))) < len(folders):
        raise InputError(f"task.label_dir names a folder twice: {', '.join(folders)}")
    return folders
