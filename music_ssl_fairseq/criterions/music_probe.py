"""Register the loss of the probe heads as a fairseq criterion."""

from typing import Any

from fairseq.criterions import FairseqCriterion, register_criterion
from fairseq.dataclass import FairseqDataclass
from fairseq.logging import metrics

from music_ssl_fairseq.probing.heads.update import loss_and_logs


@register_criterion("music_probe", dataclass=FairseqDataclass)
class MusicProbeCriterion(FairseqCriterion):
    """The sum of all heads' losses; see `head_losses`. It has no settings."""

    def __init__(self, task: Any):
        super().__init__(task)
        self.kind = task.kind

    def forward(self, model: Any, sample: dict[str, Any], reduce: bool = True) -> Any:
        """Return the summed loss, the number of items, and values to log."""
        return loss_and_logs(model, sample, self.kind)

    @staticmethod
    def reduce_metrics(logging_outputs: list[dict[str, Any]]) -> None:
        """Log the loss per item, a mean over the heads."""
        size = sum(log["sample_size"] for log in logging_outputs)
        loss = sum(float(log["loss"]) for log in logging_outputs)
        metrics.log_scalar("loss", loss / max(1, size), size, round=4)
