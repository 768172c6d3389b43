"""Loss and statistics of music2vec."""

import logging
import math
from dataclasses import dataclass, field
from typing import Any, Optional

import torch
from fairseq.criterions import FairseqCriterion, register_criterion
from fairseq.dataclass import FairseqDataclass
from fairseq.logging import metrics
from torch import Tensor
from torch.nn import functional as F

from music_ssl_fairseq.criterions.totals import totals
from music_ssl_fairseq.errors import InputError

logger = logging.getLogger(__name__)

_GRACE_UPDATES = 5000  # data2vec's: variances are small before the teacher has learned anything
_CHECK_EVERY = 100  # updates; a check waits for the GPU
_MUCH_POSITION = 0.7


@dataclass
class Music2VecCriterionConfig(FairseqDataclass):
    loss_beta: float = field(
        default=0.0,
        metadata={"help": "beta of the smooth L1 loss; 0 for the L2 loss. In fairseq: model.*"},
    )
    loss_scale: Optional[float] = field(  # noqa: UP045 (fairseq's parser needs Optional)
        default=None,
        metadata={"help": "factor on the loss; by default 1 / sqrt(width). In fairseq: model.*"},
    )
    min_target_var: float = field(
        default=0.1,
        metadata={"help": "stop once target_var is below this after 5000 updates: collapse"},
    )
    min_pred_var: float = field(
        default=0.01,
        metadata={"help": "stop once pred_var is below this after 5000 updates: collapse"},
    )


@register_criterion("music2vec", dataclass=Music2VecCriterionConfig)
class Music2VecCriterion(FairseqCriterion):
    """Regression of the teacher's representation of masked frames (data2vec, section 3.4).

    Logged: `loss`, a frame's; `target_var` and `pred_var`, the standard deviation over frames,
    averaged over channels, of targets and predictions (fairseq calls it var); `target_position`,
    the share of the targets' variance that a frame's position in the crop explains; `pred_music`,
    how much nearer predictions are to their own crop's targets than to another crop's, in square;
    `ema_decay` times 1000. Learning shows as a pred_music that rises from 0. A target_var that
    falls towards 0 is collapse: every frame looks alike to the teacher. So is a target_position
    that rises towards 1: it tells frames apart by the clock alone.
    """

    def __init__(
        self,
        task: Any,
        loss_beta: float,
        loss_scale: float | None,
        min_target_var: float,
        min_pred_var: float,
    ):
        super().__init__(task)
        self.loss_beta = loss_beta
        self.loss_scale = loss_scale
        self.minimum = {"target": min_target_var, "pred": min_pred_var}

    def forward(self, model: Any, sample: dict[str, Any], reduce: bool = True):
        """Return the summed loss, the number of masked frames, and what to log."""
        output = model(**sample["net_input"])
        prediction, target = output["prediction"], output["target"]
        frames, width = prediction.shape
        scale = 1 / math.sqrt(width) if self.loss_scale is None else self.loss_scale
        if self.loss_beta > 0:
            loss = F.smooth_l1_loss(prediction, target, reduction="sum", beta=self.loss_beta)
        else:
            loss = F.mse_loss(prediction, target, reduction="sum")
        loss = loss * scale
        logs: dict[str, Any] = {
            "loss": loss.detach(),
            "ntokens": sample["ntokens"],
            "nsentences": sample["nsentences"],
            "sample_size": frames,
            "workers": 1,
            "ema_decay": model.teacher_decay,
            "target_position": output["target_position"],
            "pred_music": output["pred_music"],
        }
        for name, y in (("target", target), ("pred", prediction.detach())):
            logs[f"{name}_sum"] = y.sum(0)
            logs[f"{name}_squares"] = y.square().sum(0)
        self._stop_if_collapsed(model, logs)
        return loss, frames, logs

    def _stop_if_collapsed(self, model: Any, logs: dict[str, Any]) -> None:
        update = model.num_updates
        if not model.training or update == 0 or update % _CHECK_EVERY:
            return
        share = float(logs["target_position"])
        if share > _MUCH_POSITION:
            logger.warning(
                "collapsing? at update %d a frame's position explains %.0f %% of the targets' "
                "variance, and the music next to nothing: try a slower teacher "
                "(model.ema_decay), longer crops or a lower optimization.lr",
                update,
                100 * share,
            )
        if update <= _GRACE_UPDATES:
            return
        for name, minimum in self.minimum.items():
            deviation = _deviation(
                logs[f"{name}_sum"], logs[f"{name}_squares"], logs["sample_size"]
            )
            if deviation < minimum:
                raise InputError(
                    f"collapsed at update {update}: {name}_var is {deviation:.4f}, below "
                    f"criterion.min_{name}_var {minimum:g}; start again with a lower "
                    "optimization.lr or a longer warm-up"
                )

    @staticmethod
    def reduce_metrics(logging_outputs: list[dict[str, Any]]) -> None:
        """Log means and deviations over all frames of all workers."""
        sums = totals(logging_outputs)
        size = sums["sample_size"]
        metrics.log_scalar("loss", sums["loss"] / size, size, round=4)
        for name in ("target", "pred"):
            value = _deviation(sums[f"{name}_sum"], sums[f"{name}_squares"], size)
            metrics.log_scalar(f"{name}_var", value, round=4)
        for name in ("target_position", "pred_music"):
            metrics.log_scalar(name, sums[name] / sums["workers"], round=4)
        metrics.log_scalar("ema_decay", 1000 * sums["ema_decay"] / sums["workers"], round=3)

    @staticmethod
    def logging_outputs_can_be_summed() -> bool:
        """Yes: everything logged is a sum, so that workers exchange one small tensor."""
        return True


def _deviation(total: Tensor, squares: Tensor, count: int | Tensor) -> float:
    """Standard deviation over frames, mean over channels, from sums over frames `[D]`."""
    total, squares = total.double(), squares.double()
    variance = (squares - total.square() / count) / (count - 1)
    return torch.sqrt(variance.clamp(min=0) + 1e-6).mean().item()
