"""The task of musicHuBERT: crops of music with one unit per frame."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Optional

from fairseq.tasks import register_task
from omegaconf import MISSING

# fairseq imports tasks/ and models/ of a user_dir, but not criterions/.
from music_ssl_fairseq.criterions import music_hubert as _criterion  # noqa: F401
from music_ssl_fairseq.data.identity import Identity, label_identity
from music_ssl_fairseq.data.label_check import check_labels
from music_ssl_fairseq.data.label_metadata import choose_label_rate, label_command
from music_ssl_fairseq.data.label_store import LabelStore
from music_ssl_fairseq.data.manifest import Manifest
from music_ssl_fairseq.data.units import LabelSet, UnitDictionary
from music_ssl_fairseq.errors import InputError
from music_ssl_fairseq.features import FRONT_ENDS
from music_ssl_fairseq.models import music_hubert as _model  # noqa: F401
from music_ssl_fairseq.runtime.settings import setting
from music_ssl_fairseq.tasks.pretraining import PretrainingConfig, PretrainingTask, data_splits
from music_ssl_fairseq.training.narration import shown


@dataclass
class MusicHubertPretrainingConfig(PretrainingConfig):
    # Any, because omegaconf knows no type for "a string or a list of strings".
    label_dir: Any = setting(
        MISSING,
        "folder with train.km, valid.km and dict.km.txt (music_ssl_fairseq label), or a list of "
        "such folders: one label set and one head each; [] for random projections alone "
        "(model.projection_targets). fairseq has one folder and a list of file endings "
        "(task.labels)",
    )
    label_rate: Optional[float] = setting(
        None,
        "labels per second: 100 for MFCC, 50 for deep features. Only for labels without the "
        "labeler's metadata.json, which states it; fairseq has it in the model too",
    )


@register_task("music_hubert_pretraining", dataclass=MusicHubertPretrainingConfig)
class MusicHubertPretrainingTask(PretrainingTask):
    """Pre-train musicHuBERT on a manifest and its labels."""

    min_mask_spans = 2
    scores_unmasked = True

    def __init__(self, cfg: MusicHubertPretrainingConfig):
        super().__init__(cfg)
        self.label_dirs = _folders(cfg.label_dir)
        self.units = [
            UnitDictionary(os.path.join(d, "dict.km.txt"), _label_command(d, cfg.data))
            for d in self.label_dirs
        ]
        self.num_classes = [len(units.dictionary) for units in self.units]
        self.label_rates = [choose_label_rate(d, cfg.label_rate) for d in self.label_dirs]

    def data_identity(self, cfg: Any) -> Identity:
        """Identify the tracks and their labels."""
        found = super().data_identity(cfg)
        splits = data_splits(cfg)
        for number, folder in enumerate(self.label_dirs):
            prefix = f"label set {number} " if len(self.label_dirs) > 1 else ""
            labels = label_identity(folder, splits, self.label_rates[number])
            found |= {f"{prefix}{name}": value for name, value in labels.items()}
        return found

    def start_lines(self, cfg: Any, model: Any) -> list[str]:
        """Name the model, its data and its units."""
        counts = [len(u.dictionary) - u.dictionary.nspecial for u in self.units]
        sets = zip(self.label_dirs, counts, self.label_rates, strict=True)
        units = [f"labels: {shown(d)}, {k:,} units, {rate:g} per second" for d, k, rate in sets]
        return super().start_lines(cfg, model) + units

    def labels(self, split: str, manifest: Manifest) -> list[LabelSet] | None:
        """Open and check the split's labels of each set."""
        sets = []
        for folder, units, rate in zip(self.label_dirs, self.units, self.label_rates, strict=True):
            store = LabelStore(os.path.join(folder, f"{split}.km"))
            check_labels(manifest, store, units, rate)
            sets.append(LabelSet(store, units, rate))
        return sets


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
"""Name of a folder in `examples/music_hubert/*.yaml`: the options that make its labels."""


def _label_command(folder: str, manifests: str) -> str:
    """Return the command that makes missing labels: what the folder's name says, or MFCC units."""
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
