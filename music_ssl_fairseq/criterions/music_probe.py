"""Loss of a batched probe, and what its validation needs."""

from functools import partial
from typing import Any

import torch
from fairseq.criterions import FairseqCriterion, register_criterion
from fairseq.dataclass import FairseqDataclass
from fairseq.logging import metrics
from torch import Tensor
from torch.nn import functional as F


class MusicProbeCriterionConfig(FairseqDataclass):
    """No settings: the kind of the task decides."""


@register_criterion("music_probe", dataclass=MusicProbeCriterionConfig)
class MusicProbeCriterion(FairseqCriterion):
    """Cross-entropy (multi-class, key), binary cross-entropy (multi-label, beats) or squared error
    (regression), summed over rows and items: each row gets the gradient of its own loss alone.

    A row that has diverged is left out of what is logged, so that the others go on."""

    def __init__(self, task: Any):
        super().__init__(task)
        self.kind: str = task.kind

    def forward(self, model: Any, sample: dict[str, Any], reduce: bool = True):
        """Return the summed loss, the number of items, and what to log.

        In evaluation that holds the outputs `[rows, N, outputs]` themselves: a metric of a split is
        no mean over batches.
        """
        outputs = model(**sample["net_input"])
        size = outputs.size(1)
        losses = self._losses(model, outputs, sample["target"])
        loss, logs = losses.sum(), self._logs(sample, losses)
        if not model.training:
            outputs = outputs.detach().float()
            if self.kind == "regression":
                outputs = model.in_units(outputs)
            logs["predictions"] = {
                "outputs": outputs.cpu(),
                **{key: sample[key].cpu() for key in ("clip", "first")},
                "rows": sample["rows"],
            }
        return loss, size, logs

    def _losses(self, model: Any, outputs: Tensor, target: Tensor) -> Tensor:
        """`[rows]`, summed over items, a mean over the outputs of an item."""
        if self.kind in ("multi-class", "key"):
            rows = len(outputs)
            each = F.cross_entropy(outputs.flatten(0, 1), target.repeat(rows), reduction="none")
            return each.view(rows, -1).sum(1)
        if self.kind == "regression":
            target = model.normalised_target(target)
            return (outputs - target).square().mean(-1).sum(1)
        target = target.reshape(outputs.shape[1:]).expand_as(outputs)
        each = F.binary_cross_entropy_with_logits(outputs, target, reduction="none")
        return each.mean(-1).sum(1)

    def train_row_by_row(self, model: Any, sample: dict[str, Any], optimizer: Any):
        """As `forward` in training, but with the updates made."""
        losses = model.train_row_by_row(sample, optimizer, partial(self.loss_and_gradient, model))
        return losses.nansum(), sample["ntokens"], self._logs(sample, losses)

    @staticmethod
    def _logs(sample: dict[str, Any], losses: Tensor) -> dict[str, Any]:
        losses = losses.detach()
        finite = losses.isfinite()
        return {
            "loss": torch.where(finite, losses, 0.0).sum() / finite.sum().clamp(min=1),
            "sample_size": sample["ntokens"],
            "nsentences": sample["nsentences"],
            "ntokens": sample["ntokens"],
        }

    def loss_and_gradient(
        self, model: Any, outputs: Tensor, target: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Of one row: the loss of `forward`, and its gradient, without autograd's bookkeeping.

        Args:
            outputs: `[N, outputs]`.
        """
        if self.kind in ("multi-class", "key"):
            logs = outputs.log_softmax(-1)
            places = target.unsqueeze(1)
            gradient = logs.exp().scatter_add_(1, places, logs.new_full(places.shape, -1.0))
            return -logs.gather(1, places).sum(), gradient
        if self.kind == "regression":
            difference = outputs - model.normalised_target(target)
            return difference.square().mean(-1).sum(), difference * (2 / outputs.size(1))
        target = target.reshape(outputs.shape)
        loss = F.binary_cross_entropy_with_logits(outputs, target, reduction="sum")
        return loss / outputs.size(1), (outputs.sigmoid() - target) / outputs.size(1)

    @staticmethod
    def reduce_metrics(logging_outputs: list[dict[str, Any]]) -> None:
        """Log the loss of an item, a mean over the rows."""
        size = sum(log["sample_size"] for log in logging_outputs)
        loss = sum(float(log["loss"]) for log in logging_outputs)
        metrics.log_scalar("loss", loss / max(1, size), size, round=4)

    @staticmethod
    def logging_outputs_can_be_summed() -> bool:
        """No: validation hands out predictions."""
        return False
