"""An update of all heads: the loss of each, one mini-batch after the other."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from music_ssl_fairseq.probing.heads.adam import RowAdam
from music_ssl_fairseq.probing.heads.head_grid import HeadGrid
from music_ssl_fairseq.probing.spec import Kind


def head_losses(kind: Kind, outputs: Tensor, target: Tensor) -> Tensor:
    """Sum each head's loss over the items: `[heads]`.

    Cross-entropy (one class), squared error (numbers) or binary cross-entropy (many classes,
    beats). The last two are averaged over the outputs of an item.

    Args:
        kind: of the task.
        outputs: `[heads, N, outputs]`.
        target: `[N, ...]`; numbers are normalised.
    """
    if kind.one_class:
        repeated = target.repeat(len(outputs))
        each = F.cross_entropy(outputs.flatten(0, 1), repeated, reduction="none")
        return each.view(len(outputs), -1).sum(1)
    if kind.has_numbers:
        return (outputs - target).square().mean(-1).sum(1)
    target = target.reshape(outputs.shape[1:]).expand_as(outputs)
    each = F.binary_cross_entropy_with_logits(outputs, target, reduction="none")
    return each.mean(-1).sum(1)


def loss_and_logs(
    model: HeadGrid, sample: dict[str, Any], kind: Kind
) -> tuple[Tensor, int, dict[str, Any]]:
    """Return the loss summed over heads and items, the number of items, and values to log.

    Each head gets the gradient of its own loss alone. The logged loss leaves out diverged heads.
    In evaluation, `predictions` holds the outputs `[heads, N, outputs]` themselves, because a
    metric of a split is no mean over batches.
    """
    outputs = model(**sample["net_input"])
    target = sample["target"]
    if kind.has_numbers:
        target = model.normalised_target(target)
    losses = head_losses(kind, outputs, target)
    finite = losses.detach().isfinite()
    logs = {
        "loss": torch.where(finite, losses.detach(), 0.0).sum() / finite.sum().clamp(min=1),
        "sample_size": sample["ntokens"],
        "nsentences": sample["nsentences"],
        "ntokens": sample["ntokens"],
    }
    if not model.training:
        outputs = outputs.detach().float()
        logs["predictions"] = {
            "outputs": (model.in_units(outputs) if kind.has_numbers else outputs).cpu(),
            "clip": sample["clip"].cpu(),
            "first": sample["first"].cpu(),
            "sizes": sample["sizes"],
        }
    return losses.sum(), sample["ntokens"], logs


def mini_batches(sample: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Cut a training sample of several mini-batches, `batch_size` windows each."""
    size, count = sample["batch_size"], sample["nsentences"]
    if count <= size:
        yield sample
        return
    for first in range(0, count, size):
        part = slice(first, first + size)
        target = sample["target"][part]
        yield {
            "net_input": {"features": sample["net_input"]["features"][part]},
            "target": target,
            "nsentences": len(target),
            "ntokens": len(target),
        }


def update(
    model: HeadGrid, optimizer: RowAdam, batch: dict[str, Any], kind: Kind
) -> dict[str, Any]:
    """Make one update, as fairseq's trainer does, and return the values to log."""
    optimizer.zero_grad()
    loss, size, logs = loss_and_logs(model, batch, kind)
    optimizer.backward(loss)
    optimizer.multiply_grads(1 / size)
    optimizer.step()
    return logs
