"""The task of musicHuBERT: crops of music with a unit for each frame."""

import os
from dataclasses import dataclass, field
from typing import Any, Optional

from fairseq.tasks import register_task
from omegaconf import MISSING

# fairseq imports tasks/ and models/ of a user_dir, but not criterions/.
from music_ssl_fairseq.criterions import music_hubert as _criterion  # noqa: F401
from music_ssl_fairseq.data.labels import (
    LabelStore,
    UnitDictionary,
    check_labels,
    choose_label_rate,
)
from music_ssl_fairseq.data.manifest import Manifest
from music_ssl_fairseq.models import music_hubert as _model  # noqa: F401
from music_ssl_fairseq.tasks.pretraining import PretrainingConfig, PretrainingTask


@dataclass
class MusicHubertPretrainingConfig(PretrainingConfig):
    label_dir: str = field(
        default=MISSING,
        metadata={
            "help": "folder with train.km, valid.km and dict.km.txt (music_ssl_fairseq.label)"
        },
    )
    label_rate: Optional[float] = field(  # noqa: UP045 (fairseq's parser needs Optional)
        default=None,
        metadata={
            "help": "labels a second: 100 for MFCC, 50 for deep features. Only for labels without "
            "the labeler's metadata.json, which says it; fairseq has it in the model as well"
        },
    )


@register_task("music_hubert_pretraining", dataclass=MusicHubertPretrainingConfig)
class MusicHubertPretrainingTask(PretrainingTask):
    """Pre-train musicHuBERT on a manifest and its labels."""

    min_mask_spans = 2

    def __init__(self, cfg: MusicHubertPretrainingConfig):
        super().__init__(cfg)
        self.units = UnitDictionary(os.path.join(cfg.label_dir, "dict.km.txt"))
        self.num_classes = len(self.units.dictionary)
        self.label_rate = choose_label_rate(cfg.label_dir, cfg.label_rate)

    def labels(self, split: str, manifest: Manifest) -> dict[str, Any]:
        """Open and check the split's labels."""
        store = LabelStore(os.path.join(self.cfg.label_dir, f"{split}.km"))
        check_labels(manifest, store, self.units, self.label_rate)
        return {"labels": store, "units": self.units, "label_rate": self.label_rate}
