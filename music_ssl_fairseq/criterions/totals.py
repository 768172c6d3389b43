"""Sums of what the workers logged, brought over from the device in one go."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from music_ssl_fairseq.runtime.delayed_fetch import DelayedFetch


def totals(
    logging_outputs: list[dict[str, Any]], fetch: Callable[[Tensor], Tensor] = Tensor.cpu
) -> dict[str, Any]:
    """Sum each entry over the outputs.

    fairseq's metrics look at every number each time it is logged, and on a GPU each look would wait
    for it. Here they come as one tensor, in one wait.

    Args:
        logging_outputs: dicts with the same keys, of numbers or of tensors of any shape.
        fetch: brings a tensor to the CPU.

    Returns:
        The same keys: numbers and 0-d tensors as float or int, other tensors as float64 on the CPU.
    """
    sums = {key: sum(log[key] for log in logging_outputs) for key in logging_outputs[0]}
    tensors = {key: value for key, value in sums.items() if isinstance(value, Tensor)}
    if not tensors:
        return sums
    device = next((t.device for t in tensors.values() if t.is_cuda), torch.device("cpu"))
    flat = fetch(
        torch.cat([t.detach().to(device, torch.float64).flatten() for t in tensors.values()])
    )
    parts = flat.split([value.numel() for value in tensors.values()])
    for (key, value), part in zip(tensors.items(), parts, strict=True):
        sums[key] = part.view(value.shape) if value.dim() else part.item()
    return sums


class LateTotals:
    """`totals` of the call before, where they are on a GPU: see `DelayedFetch`."""

    def __init__(self) -> None:
        self._late = DelayedFetch()
        self._numbers: dict[str, Any] = {}

    def __call__(self, logging_outputs: list[dict[str, Any]]) -> dict[str, Any]:
        """The totals of the call before; at the first call, and without a GPU, of this one."""
        on_gpu = any(isinstance(v, Tensor) and v.is_cuda for v in logging_outputs[0].values())
        sums = totals(logging_outputs, self._late)
        if not on_gpu:
            return sums
        # What was a plain number is of the same update as what was not.
        numbers = {k: v for k, v in sums.items() if not isinstance(logging_outputs[0][k], Tensor)}
        previous, self._numbers = self._numbers or numbers, numbers
        return sums | previous
