"""Register the grid of probe heads as a fairseq model."""

from typing import Any

from fairseq.models import register_model

from music_ssl_fairseq.probing.config import HeadGridConfig
from music_ssl_fairseq.probing.heads.fine_tuning import FineTunedProbe
from music_ssl_fairseq.probing.heads.head_grid import HeadGrid


@register_model("music_probe", dataclass=HeadGridConfig)
class MusicProbeModel(HeadGrid):
    """The grid of heads in training, then the head chosen on validation."""

    @classmethod
    def build_model(cls, cfg: HeadGridConfig, task: Any) -> HeadGrid:
        """Build the heads for the task's features and outputs."""
        probe = task.probe
        if not probe.unfreeze:
            return cls(cfg, probe.inputs())
        encoder = probe.encoder()  # refuses a front end
        return FineTunedProbe(cfg, probe.inputs(), encoder, probe.plan.per_frame)
