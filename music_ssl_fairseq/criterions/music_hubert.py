"""Loss and statistics of musicHuBERT."""

import math
from dataclasses import dataclass
from typing import Any

from fairseq.criterions import FairseqCriterion, register_criterion
from fairseq.logging import metrics

from music_ssl_fairseq.criterions.collapse import UnitWatch, schedule_of
from music_ssl_fairseq.criterions.totals import totals
from music_ssl_fairseq.criterions.units import UnitLossConfig, log_units, score_units
from music_ssl_fairseq.runtime.settings import FROM_0, changeable, setting


@dataclass
class MusicHubertCriterionConfig(UnitLossConfig):
    pred_masked_weight: float = setting(
        1.0, "weight of the loss over masked frames (HuBERT's alpha)", FROM_0
    )
    pred_nomask_weight: float = setting(0.0, "weight of the loss over unmasked frames", FROM_0)
    cqt_weight: float = setting(
        1.0, "weight of the error of the constant-Q head (model.cqt_bands)", FROM_0
    )
    features_pen_weight: float = setting(
        10.0,
        "weight of the mean square of the extractor's features, to keep them small; fairseq's "
        "loss_weights: [10]",
        FROM_0,
    )
    stop_if_collapsed: bool = changeable(
        True,
        "end a run that predicts the same unit everywhere, once the warm-up is over; false warns. "
        "Not in fairseq",
    )


@register_criterion("music_hubert", dataclass=MusicHubertCriterionConfig)
class MusicHubertCriterion(FairseqCriterion):
    """Cross-entropy over units of masked (and, weighted, unmasked) frames.

    Logged, losses in bits, `_m` for masked and `_u` for unmasked frames (those in validation, and
    in training if they count):
        loss: with the feature penalty and the constant-Q error.
        loss_m, loss_u: without them.
        accuracy_m, accuracy_u: learning shows as accuracy_m above majority_m.
        majority_m: accuracy on masked frames of always naming the most frequent unit.
        perplexity_target, perplexity_pred: numbers of units that labels and predictions use.
            A perplexity_pred that falls to 1 while nothing is learned is collapse.

    With several label sets, each set logs these with its number from 0 on, as in fairseq:
    `loss_m_0`, `accuracy_m_1`. `loss_m` is then their weighted sum.
    """

    def __init__(self, cfg: MusicHubertCriterionConfig, task: Any):
        super().__init__(task)
        self.cfg = cfg
        self.watch = UnitWatch(*schedule_of(task))

    def forward(self, model: Any, sample: dict[str, Any], reduce: bool = True):
        """Return the summed loss, the number of frames it is over, and what to log."""
        # Unmasked frames that do not count are scored in validation alone: see `skip_nomask`.
        score_unmasked = self.cfg.pred_nomask_weight > 0 or not model.training
        output = model(
            target=sample["target"], score_unmasked=score_unmasked, **sample["net_input"]
        )
        logs: dict[str, Any] = {"ntokens": sample["ntokens"], "nsentences": sample["nsentences"]}
        loss_m = score_units(output, "m", self.cfg.label_weights, logs)
        loss = self.cfg.pred_masked_weight * loss_m
        # The number of frames whose loss counts, by which fairseq divides the sum.
        sample_size = logs["count_m"] if self.cfg.pred_masked_weight > 0 else 0
        if output["logits_u"] is not None:
            loss_u = score_units(output, "u", self.cfg.label_weights, logs)
            if self.cfg.pred_nomask_weight > 0:
                loss = loss + self.cfg.pred_nomask_weight * loss_u
                sample_size += logs["count_u"]
        if "cqt_error" in output:
            loss = loss + self.cfg.cqt_weight * output["cqt_error"]
            logs["cqt_error"] = output["cqt_error"].detach()
        if self.cfg.features_pen_weight > 0:
            penalty = self.cfg.features_pen_weight * output["features_pen"] * sample_size
            loss = loss + penalty
            logs["loss_features_pen"] = penalty.detach()
        logs |= {"loss": loss.detach(), "sample_size": sample_size}
        return loss, sample_size, logs

    def collapsed(self, sums: dict[str, Any], update: int) -> str | None:
        """Return one line if an update's `totals` show a collapse: see `UnitWatch`."""
        found: dict[str, list] = {"correct_m": [], "units_pred": [], "units_target": []}
        for name, values in found.items():  # one per label set
            values += [sums[key] for key in sums if key.startswith(name)]
        correct, pred, target = found.values()
        return self.watch.update(update, sum(correct), sums["count_m"], pred, target)

    @staticmethod
    def reduce_metrics(logging_outputs: list[dict[str, Any]]) -> None:
        """Log the means over all frames of all workers."""
        sums = totals(logging_outputs)
        size = sums["sample_size"]
        bits = 1 / math.log(2)
        metrics.log_scalar("loss", sums["loss"] * bits / size, size, round=4)
        if "cqt_error" in sums:
            metrics.log_scalar("cqt_error", sums["cqt_error"] / sums["count_m"], size, round=4)
        if "loss_features_pen" in sums:
            penalty = sums["loss_features_pen"] * bits / size
            metrics.log_scalar("loss_features_pen", penalty, size, round=5)
        log_units(sums)

    @staticmethod
    def logging_outputs_can_be_summed() -> bool:
        """Return True: everything logged is a sum, so workers exchange one small tensor."""
        return True
