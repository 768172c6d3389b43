"""Sums of what the workers logged, copied from the device in one transfer."""

from collections.abc import Callable
from typing import Any

import torch
from fairseq.logging import metrics
from torch import Tensor

from music_ssl_fairseq.frames import SAMPLE_RATE
from music_ssl_fairseq.runtime.delayed_fetch import DelayedFetch


def totals(
    logging_outputs: list[dict[str, Any]], fetch: Callable[[Tensor], Tensor] = Tensor.cpu
) -> dict[str, Any]:
    """Sum each entry over the outputs.

    fairseq's metrics read every number they log, and on a GPU each read synchronises with it. Here
    all numbers come as one tensor, with one synchronisation.

    Args:
        logging_outputs: dicts with the same keys, of numbers or of tensors of any shape.
        fetch: copies a tensor to the CPU.

    Returns:
        A dict with the same keys: numbers and 0-d tensors as float or int, other tensors as float64
        on the CPU.
    """
    sums = {key: sum(log[key] for log in logging_outputs) for key in logging_outputs[0]}
    tensors = {key: value for key, value in sums.items() if isinstance(value, Tensor)}
    device = next((t.device for t in tensors.values() if t.is_cuda), torch.device("cpu"))
    flat = fetch(
        torch.cat([t.detach().to(device, torch.float64).flatten() for t in tensors.values()])
    )
    parts = flat.split([value.numel() for value in tensors.values()])
    for (key, value), part in zip(tensors.items(), parts, strict=True):
        sums[key] = part.view(value.shape) if value.dim() else part.item()
    return sums


def log_pace(sums: dict[str, Any], updates_left: int) -> None:
    """Log seconds of audio per second, of all processes, and the hours until the last update.

    `sums` are an update's, with `ntokens` in samples. `updates_left` is 0 if their number is not
    limited; then there is no `eta_hours`.
    """
    rate = sums["ntokens"] / SAMPLE_RATE
    metrics.log_speed("audio_seconds_per_second", rate, priority=91, round=1)

    def hours_left(meters: Any) -> float:
        updates_per_second = meters["ups"].avg if "ups" in meters else 0
        return round(updates_left / updates_per_second / 3600, 4) if updates_per_second else 0.0

    if updates_left:
        metrics.log_derived("eta_hours", hours_left, priority=92)


class DelayedTotals:
    """`totals` of the previous call, if they are on a GPU: see `DelayedFetch`."""

    def __init__(self) -> None:
        self._fetch = DelayedFetch()
        self._numbers: dict[str, Any] = {}

    def __call__(self, logging_outputs: list[dict[str, Any]]) -> dict[str, Any]:
        """Return the totals of the previous call, or of this one if it is the first or on a CPU."""
        on_gpu = any(isinstance(v, Tensor) and v.is_cuda for v in logging_outputs[0].values())
        sums = totals(logging_outputs, self._fetch)
        if not on_gpu:
            return sums
        # Plain numbers must be of the same update as the tensors.
        numbers = {k: v for k, v in sums.items() if not isinstance(logging_outputs[0][k], Tensor)}
        previous, self._numbers = self._numbers or numbers, numbers
        return sums | previous
