"""The task of music2vec: crops of music, no labels."""

from fairseq.tasks import register_task

# fairseq imports tasks/ and models/ of a user_dir, but not criterions/.
from music_ssl_fairseq.criterions import music2vec as _criterion  # noqa: F401
from music_ssl_fairseq.models import music2vec as _model  # noqa: F401
from music_ssl_fairseq.tasks.pretraining import PretrainingConfig, PretrainingTask


@register_task("music2vec_pretraining", dataclass=PretrainingConfig)
class Music2VecPretrainingTask(PretrainingTask):
    """Pre-train music2vec on a manifest."""
