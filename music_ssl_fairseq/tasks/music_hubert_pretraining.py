"""The task of musicHuBERT: crops of music with one unit per frame."""

from dataclasses import dataclass
from typing import Any

from fairseq.tasks import register_task
from omegaconf import MISSING

# fairseq imports tasks/ and models/ of a user_dir, but not criterions/.
from music_ssl_fairseq.criterions import music_hubert as _criterion  # noqa: F401
from music_ssl_fairseq.models import music_hubert as _model  # noqa: F401
from music_ssl_fairseq.runtime.settings import changeable
from music_ssl_fairseq.tasks.pretraining import PretrainingConfig, PretrainingTask


@dataclass
class MusicHubertPretrainingConfig(PretrainingConfig):
    label_dir: Any = changeable(
        MISSING,
        "folder with train.km, valid.km and dict.km.txt (music_ssl_fairseq label), or a list of "
        "such folders: one label set and one head each; [] for random projections alone "
        "(model.projection_targets). fairseq has one folder and a list of file endings "
        "(task.labels)",
    )


@register_task("music_hubert_pretraining", dataclass=MusicHubertPretrainingConfig)
class MusicHubertPretrainingTask(PretrainingTask):
    """Pre-train musicHuBERT on a manifest and its labels."""

    min_mask_spans = 2
    has_targets = True
    scores_unmasked = True
