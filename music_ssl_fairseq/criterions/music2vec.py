"""Loss and statistics of music2vec."""

import math
from dataclasses import dataclass
from typing import Any, Optional

import torch
from fairseq.criterions import FairseqCriterion, register_criterion
from fairseq.logging import metrics
from torch import Tensor
from torch.nn import functional as F

from music_ssl_fairseq.criterions.collapse import SpreadWatch, schedule_of
from music_ssl_fairseq.criterions.totals import totals
from music_ssl_fairseq.criterions.units import UnitLossConfig, log_units, score_units
from music_ssl_fairseq.errors import InputError
from music_ssl_fairseq.runtime.settings import ABOVE_0, FROM_0, changeable, setting


@dataclass
class Music2VecCriterionConfig(UnitLossConfig):
    loss_beta: float = setting(
        0.0, "beta of the smooth L1 loss; 0 for the L2 loss. In fairseq: model.*", FROM_0
    )
    loss_scale: Optional[float] = setting(
        None, "factor on the loss; by default 1 / sqrt(width). In fairseq: model.*", ABOVE_0
    )
    unit_weight: float = setting(
        1.0,
        "weight of the loss over units, with label sets (task.label_dir). Not in fairseq",
        FROM_0,
    )
    min_target_var: float = changeable(
        0.1,
        "smallest healthy target_var, 300 updates after the warm-up, but no later than fairseq's "
        "5000 updates: below is collapse",
    )
    min_pred_var: float = changeable(
        0.01, "smallest healthy pred_var after 5000 updates: below is collapse"
    )
    stop_if_collapsed: bool = changeable(
        True,
        "end a run whose targets or predictions have no spread, or encode only where in the crop "
        "a frame lies; false warns",
    )


@register_criterion("music2vec", dataclass=Music2VecCriterionConfig)
class Music2VecCriterion(FairseqCriterion):
    """Regression of the teacher's representation of masked frames (data2vec, section 3.4).

    Logged:
        loss: per frame.
        target_var, pred_var: standard deviation over frames, averaged over channels, of targets and
            predictions (fairseq's name). Towards 0 it is collapse: all frames are alike.
        target_position: see `position_share`. Towards 1 it is collapse: the targets encode position
            alone.
        pred_music: see `music_gain`. Learning shows as a rise from 0.
        ema_decay: times 1000.

    With label sets, the loss per frame is that of the regression and `unit_weight` times the
    cross-entropy of units, in nats. What musicHuBERT logs of masked frames is logged as well.
    """

    def __init__(self, cfg: Music2VecCriterionConfig, task: Any):
        super().__init__(task)
        self.cfg = cfg
        if cfg.label_weights and not getattr(task, "classes_per_set", True):
            raise InputError(
                f"criterion.label_weights={list(cfg.label_weights)} is for label sets, and "
                "task.label_dir names none"
            )
        minimum = {"target": cfg.min_target_var, "pred": cfg.min_pred_var}
        self.watch = SpreadWatch(*schedule_of(task), minimum)

    def forward(self, model: Any, sample: dict[str, Any], reduce: bool = True):
        """Return the summed loss, the number of masked frames, and what to log."""
        inputs = dict(sample["net_input"])
        labelled = "target" in sample
        if labelled:
            inputs["units"] = sample["target"]
        output = model(**inputs)
        prediction, target = output["prediction"], output["teacher_target"]
        teacher_frames = output["teacher_frames"]
        frames, width = prediction.shape
        scale = 1 / math.sqrt(width) if self.cfg.loss_scale is None else self.cfg.loss_scale
        if self.cfg.loss_beta > 0:
            loss = F.smooth_l1_loss(prediction, target, reduction="sum", beta=self.cfg.loss_beta)
        else:
            loss = F.mse_loss(prediction, target, reduction="sum")
        loss = loss * scale
        units: dict[str, Any] = {}
        if labelled:
            loss = loss + self.cfg.unit_weight * score_units(
                output, "m", self.cfg.label_weights, units
            )
        logs: dict[str, Any] = {
            **units,
            "loss": loss.detach(),
            "ntokens": sample["ntokens"],
            "nsentences": sample["nsentences"],
            "sample_size": frames,
            "workers": 1,
            "ema_decay": model.teacher_decay,
            "target_position": position_share(teacher_frames),
            "pred_music": music_gain(
                prediction.detach(), target, teacher_frames, output["crop_indices"]
            ),
        }
        for name, y in (("target", target), ("pred", prediction.detach())):
            logs[f"{name}_sum"] = y.sum(0)
            logs[f"{name}_squares"] = y.square().sum(0)
        return loss, frames, logs

    def collapsed(self, sums: dict[str, Any], update: int) -> str | None:
        """Return one line if an update's `totals` show a collapse: see `SpreadWatch`."""
        if not self.watch.due(update):
            return None
        position = sums["target_position"] / sums["workers"]
        return self.watch.update(update, _deviations(sums), position)

    @staticmethod
    def reduce_metrics(logging_outputs: list[dict[str, Any]]) -> None:
        """Log means and deviations over all frames of all workers."""
        sums = totals(logging_outputs)
        size = sums["sample_size"]
        metrics.log_scalar("loss", sums["loss"] / size, size, round=4)
        for name, value in _deviations(sums).items():
            metrics.log_scalar(f"{name}_var", value, round=4)
        for name in ("target_position", "pred_music"):
            metrics.log_scalar(name, sums[name] / sums["workers"], round=4)
        log_units(sums)
        metrics.log_scalar("ema_decay", 1000 * sums["ema_decay"] / sums["workers"], round=3)

    @staticmethod
    def logging_outputs_can_be_summed() -> bool:
        """Return True: everything logged is a sum, so workers exchange one small tensor."""
        return True


def _deviations(sums: dict[str, Any]) -> dict[str, float]:
    """Average the deviations of targets and predictions over channels, from an update's totals."""
    found = {}
    count = sums["sample_size"]
    for name in ("target", "pred"):
        total, squares = sums[f"{name}_sum"].double(), sums[f"{name}_squares"].double()
        variance = (squares - total.square() / count) / (count - 1)
        found[name] = torch.sqrt(variance.clamp(min=0) + 1e-6).mean().item()
    return found


@torch.no_grad()
def position_share(teacher_frames: Tensor) -> Tensor:
    """Compute the share of the variance of `[B, frames, D]` that a frame's position explains.

    A teacher can keep its variance and yet encode only the position of a frame in its crop, which
    the student predicts easily. The share is the variance over time of the mean over crops, less
    its expectation by chance, divided by the whole variance: about 0 if position explains nothing,
    1 if it explains all (0 for a single crop).
    """
    crops = teacher_frames.size(0)
    if crops < 2:
        return teacher_frames.new_zeros(())
    by_position = teacher_frames.mean(0).var(0, correction=0).mean()
    whole = teacher_frames.flatten(0, 1).var(0, correction=0).mean()
    return (crops * by_position / whole.clamp(min=1e-12) - 1) / (crops - 1)


@torch.no_grad()
def music_gain(
    prediction: Tensor, own_target: Tensor, teacher_frames: Tensor, crop_indices: Tensor
) -> Tensor:
    """Compare predictions with their own crop's targets and with another crop's.

    A falling loss does not show what is learned: a frame's position in its crop helps to predict
    its target, and so does the mean of all targets. Both help as much with any other crop. So this
    compares the squared errors with those against the same frames of the batch's previous crop.

    Args:
        prediction: `[N, D]`, at masked frames.
        own_target: `[N, D]`, the targets of these frames.
        teacher_frames: `[B, frames, D]`, the targets of all frames.
        crop_indices: `[N]`, the masked frames' indices into `B * frames`.

    Returns:
        A scalar, 1 - own error / other error: 0 if predictions do not depend on the music (and for
        a single crop), up to 1.
    """
    targets = teacher_frames.flatten(0, 1)
    other_target = targets[(crop_indices - teacher_frames.size(1)) % len(targets)]
    own_error, other_error = (
        (prediction - target).square().sum() for target in (own_target, other_target)
    )
    return 1 - own_error / other_error.clamp(min=1e-12)
