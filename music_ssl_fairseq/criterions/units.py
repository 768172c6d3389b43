"""Cross-entropy and statistics of predicted units, per label set."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, List, Optional

import torch
from fairseq.dataclass import FairseqDataclass
from fairseq.logging import metrics
from torch import Tensor
from torch.nn import functional as F

from music_ssl_fairseq.criterions.collapse import entropy
from music_ssl_fairseq.errors import InputError
from music_ssl_fairseq.runtime.settings import FROM_0, setting


@dataclass
class UnitLossConfig(FairseqDataclass):
    label_weights: Optional[List[float]] = setting(
        None,
        "weight of each label set's loss, in the order of task.label_dir; 1 each by default. Not "
        "in fairseq",
        FROM_0,
    )


def score_units(
    output: dict[str, Any], kind: str, weights: Sequence[float] | None, logs: dict[str, Any]
) -> Tensor:
    """Sum the loss over masked ("m") or unmasked ("u") frames; add statistics to `logs`.

    Raises InputError if there is not one weight per label set.

    Args:
        output: of the model: `logits_m`, `[N, classes]` per label set, and `target_m`, `[N, sets]`;
            likewise `_u`.
        weights: of each label set; 1 each by default.
    """
    sets = output[f"logits_{kind}"]
    targets = output[f"target_{kind}"].unbind(-1)
    weights = weights or [1.0] * len(sets)
    if len(weights) != len(sets):
        raise InputError(
            f"criterion.label_weights is {list(weights)}: give a number for each of the "
            f"{len(sets)} label sets"
        )
    total = torch.zeros((), device=targets[0].device)
    for number, (logits, target, weight) in enumerate(zip(sets, targets, weights, strict=True)):
        name = f"{kind}_{number}" if len(sets) > 1 else kind
        loss = F.cross_entropy(logits, target, reduction="sum")
        total = total + weight * loss
        logs |= {f"loss_{name}": loss.detach(), **_statistics(logits.detach(), target, name)}
    logs[f"loss_{kind}"] = total.detach()
    logs[f"count_{kind}"] = targets[0].numel()
    return total


def log_units(sums: dict[str, Any]) -> None:
    """Log losses in bits, accuracies and perplexities from an update's `totals`."""
    for key in sums:
        kind, _, name = key.partition("_")
        count = sums.get(f"count_{name[:1]}")
        if kind == "loss" and count is not None:
            metrics.log_scalar(key, sums[key] / math.log(2) / count, count, round=4)
        elif kind == "correct":
            metrics.log_scalar(f"accuracy_{name}", sums[key] / count, count, round=5)
        elif kind == "units":
            _log_counts(key, sums[key])


def _statistics(logits: Tensor, target: Tensor, name: str) -> dict[str, Tensor]:
    """Count the frames predicted correctly and, at masked frames, each unit."""
    predicted = logits.argmax(-1)
    classes = logits.size(-1)
    found = {f"correct_{name}": (predicted == target).sum()}
    if name.startswith("m"):
        number = name[1:]
        found[f"units_target{number}"] = _histogram(target, classes)
        found[f"units_pred{number}"] = _histogram(predicted, classes)
    return found


def _log_counts(key: str, counts: Tensor) -> None:
    """Log perplexity and majority from counts such as `units_target` or `units_pred_1`.

    Counts are summed over the logging interval, because one batch is too small a sample. fairseq
    hides keys with a leading underscore.
    """
    metrics.log_scalar_sum(f"_{key}", counts)
    name = key.removeprefix("units_")

    def perplexity(meters: Any) -> float:
        return round(math.exp(entropy(meters[f"_{key}"].sum)), 2)

    def majority(meters: Any) -> float:
        counts = meters[f"_{key}"].sum
        return round((counts.max() / counts.sum()).item(), 5)

    metrics.log_derived(f"perplexity_{name}", perplexity)
    if name.startswith("target"):
        metrics.log_derived(name.replace("target", "majority_m"), majority)


def _histogram(units: Tensor, classes: int) -> Tensor:
    # bincount finds the largest unit, which synchronises with the GPU.
    counts = torch.zeros(classes, dtype=torch.float64, device=units.device)
    return counts.index_add_(0, units, torch.ones_like(units, dtype=torch.float64))
