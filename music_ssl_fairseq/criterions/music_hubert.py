"""Loss and statistics of musicHuBERT."""

import math
from dataclasses import dataclass, field
from typing import Any

import torch
from fairseq.criterions import FairseqCriterion, register_criterion
from fairseq.dataclass import FairseqDataclass
from fairseq.logging import metrics
from torch import Tensor
from torch.nn import functional as F

from music_ssl_fairseq.criterions.collapse import CollapseWatch
from music_ssl_fairseq.criterions.totals import totals


@dataclass
class MusicHubertCriterionConfig(FairseqDataclass):
    pred_masked_weight: float = field(
        default=1.0, metadata={"help": "weight of the loss over masked frames (HuBERT's alpha)"}
    )
    pred_nomask_weight: float = field(
        default=0.0, metadata={"help": "weight of the loss over unmasked frames"}
    )
    features_pen_weight: float = field(
        default=10.0,
        metadata={
            "help": "weight of the mean square of the extractor's features, to keep them small; "
            "fairseq's loss_weights: [10]"
        },
    )


@register_criterion("music_hubert", dataclass=MusicHubertCriterionConfig)
class MusicHubertCriterion(FairseqCriterion):
    """Cross-entropy over units of masked (and, weighted, unmasked) frames.

    Logged, in bits where they are losses: `loss` with the feature penalty, `loss_m` and `loss_u`
    without (those of unmasked frames, `_u`, in validation, and in training if they count);
    `accuracy_m`, `accuracy_u`; `majority_m`, the accuracy on masked frames of always
    naming the most frequent unit; `perplexity_target`, `perplexity_pred`: how many units the labels
    and the predictions really use. Learning shows as accuracy_m rising above majority_m; a
    perplexity_pred that falls to 1 while it does not is collapse.
    """

    def __init__(
        self,
        task: Any,
        pred_masked_weight: float,
        pred_nomask_weight: float,
        features_pen_weight: float,
    ):
        super().__init__(task)
        self.pred_masked_weight = pred_masked_weight
        self.pred_nomask_weight = pred_nomask_weight
        self.features_pen_weight = features_pen_weight
        self.watch = CollapseWatch()

    def forward(self, model: Any, sample: dict[str, Any], reduce: bool = True):
        """Return the summed loss, the number of frames it is over, and what to log."""
        # Of what does not count, validation alone is told: see `skip_nomask`.
        wanted = self.pred_nomask_weight > 0 or not model.training
        output = model(target=sample["target"], score_unmasked=wanted, **sample["net_input"])
        logs: dict[str, Any] = {
            "ntokens": sample["ntokens"],
            "nsentences": sample["nsentences"],
        }
        loss_m = self._score(output, "m", logs)
        loss = self.pred_masked_weight * loss_m
        sample_size = logs["count_m"] if self.pred_masked_weight > 0 else 0
        if output["logits_u"] is not None:
            loss_u = self._score(output, "u", logs)
            if self.pred_nomask_weight > 0:
                loss = loss + self.pred_nomask_weight * loss_u
                sample_size += logs["count_u"]
        if self.features_pen_weight > 0:
            penalty = self.features_pen_weight * output["features_pen"] * sample_size
            loss = loss + penalty
            logs["loss_features_pen"] = penalty.detach()
        if model.training:
            self.watch.update(
                logs["correct_m"], logs["count_m"], output["features_pen"], logs["units_target"]
            )
        logs |= {"loss": loss.detach(), "sample_size": sample_size}
        return loss, sample_size, logs

    @staticmethod
    def _score(output: dict[str, Tensor], kind: str, logs: dict[str, Any]) -> Tensor:
        """Loss over the masked ("m") or unmasked ("u") frames; puts its statistics into `logs`."""
        logits, target = output[f"logits_{kind}"], output[f"target_{kind}"]
        loss = F.cross_entropy(logits, target, reduction="sum")
        with torch.no_grad():
            predicted = logits.argmax(-1)
            logs[f"loss_{kind}"] = loss.detach()
            logs[f"correct_{kind}"] = (predicted == target).sum()
            logs[f"count_{kind}"] = target.numel()
            if kind == "m":
                classes = logits.size(-1)
                logs["units_target"] = _histogram(target, classes)
                logs["units_pred"] = _histogram(predicted, classes)
        return loss

    @staticmethod
    def reduce_metrics(logging_outputs: list[dict[str, Any]]) -> None:
        """Log the means over all frames of all workers."""
        sums = totals(logging_outputs)
        size = sums["sample_size"]
        bits = 1 / math.log(2)
        metrics.log_scalar("loss", sums["loss"] * bits / size, size, round=4)
        for key in ("loss_m", "loss_u"):
            if key in sums:
                count = sums[key.replace("loss", "count")]
                metrics.log_scalar(key, sums[key] * bits / count, count, round=4)
        if "loss_features_pen" in sums:
            penalty = sums["loss_features_pen"] * bits / size
            metrics.log_scalar("loss_features_pen", penalty, size, round=5)
        for kind in ("m", "u"):
            if f"count_{kind}" in sums:
                count = sums[f"count_{kind}"]
                metrics.log_scalar(
                    f"accuracy_{kind}", sums[f"correct_{kind}"] / count, count, round=5
                )
        # The counts of units are summed over the logging interval (fairseq hides keys with a
        # leading underscore): the majority of one batch is too small a sample to compare with.
        for which in ("target", "pred"):
            metrics.log_scalar_sum(f"_units_{which}", sums[f"units_{which}"])
            metrics.log_derived(
                f"perplexity_{which}",
                lambda meters, key=f"_units_{which}": _perplexity(meters[key].sum),
            )
        metrics.log_derived("majority_m", lambda meters: _majority(meters["_units_target"].sum))

    @staticmethod
    def logging_outputs_can_be_summed() -> bool:
        """Yes: everything logged is a sum, so that workers exchange one small tensor."""
        return True


def _histogram(units: Tensor, classes: int) -> Tensor:
    # bincount looks for the largest unit, and waits for the GPU to do so.
    counts = torch.zeros(classes, dtype=torch.float64, device=units.device)
    return counts.index_add_(0, units, torch.ones_like(units, dtype=torch.float64))


def _perplexity(counts: Tensor) -> float:
    """Two to the entropy of a histogram: the number of equally frequent units it is worth."""
    share = counts.double() / counts.sum()
    entropy = -torch.special.xlogy(share, share).sum()
    return round(math.exp(entropy.item()), 2)


def _majority(counts: Tensor) -> float:
    """Share of the most frequent unit."""
    return round((counts.max() / counts.sum()).item(), 5)
