"""Register the grid of probe heads as a fairseq model."""

from typing import Any

from fairseq.models import register_model

from music_ssl_fairseq.probing.config import MusicProbeConfig
from music_ssl_fairseq.probing.heads.model import HeadGrid


@register_model("music_probe", dataclass=MusicProbeConfig)
class MusicProbeModel(HeadGrid):
    """The grid of heads in training, then the head chosen on validation."""

    @classmethod
    def build_model(cls, cfg: MusicProbeConfig, task: Any) -> "MusicProbeModel":
        """Build the heads for the task's features and outputs."""
        return cls(cfg, task.probe.inputs())
