"""The task of music2vec: crops of music, with units per frame if there are label sets."""

from dataclasses import dataclass

from fairseq.tasks import register_task

# fairseq imports tasks/ and models/ of a user_dir, but not criterions/.
from music_ssl_fairseq.criterions import music2vec as _criterion  # noqa: F401
from music_ssl_fairseq.models import music2vec as _model  # noqa: F401
from music_ssl_fairseq.tasks.pretraining import PretrainingConfig, PretrainingTask


@dataclass
class Music2VecPretrainingConfig(PretrainingConfig):
    """Fields of music2vec. data2vec has `normalize: true` and crops of 30 s: see examples/."""


@register_task("music2vec_pretraining", dataclass=Music2VecPretrainingConfig)
class Music2VecPretrainingTask(PretrainingTask):
    """Pre-train music2vec on a manifest, and on its labels if there are any."""
