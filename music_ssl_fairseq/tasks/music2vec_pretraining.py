"""The task of music2vec: crops of music, with units per frame if there are label sets."""

from dataclasses import dataclass
from typing import Any

from fairseq.tasks import register_task

# fairseq imports tasks/ and models/ of a user_dir, but not criterions/.
from music_ssl_fairseq.criterions import music2vec as _criterion  # noqa: F401
from music_ssl_fairseq.data.manifest import Manifest
from music_ssl_fairseq.data.units import LabelSet
from music_ssl_fairseq.models import music2vec as _model  # noqa: F401
from music_ssl_fairseq.runtime.settings import setting
from music_ssl_fairseq.tasks.music_hubert_pretraining import (
    MusicHubertPretrainingConfig,
    MusicHubertPretrainingTask,
)


@dataclass
class Music2VecPretrainingConfig(MusicHubertPretrainingConfig):
    """Fields of music2vec. data2vec has `normalize: true` and crops of 30 s: see examples/."""

    label_dir: Any = setting(
        None,
        "a folder of units (music_ssl_fairseq label), or a list of such folders, that masked "
        "frames predict beside the teacher's view; none by default. Not in fairseq",
    )


@register_task("music2vec_pretraining", dataclass=Music2VecPretrainingConfig)
class Music2VecPretrainingTask(MusicHubertPretrainingTask):
    """Pre-train music2vec on a manifest, and on its labels if there are any."""

    min_mask_spans = 1
    scores_unmasked = False

    def labels(self, split: str, manifest: Manifest) -> list[LabelSet] | None:
        """Open and check the split's labels of each set; None if there are no sets."""
        return super().labels(split, manifest) or None
