"""Losses and gradients that are not finite, and the tracks that they come from."""

import contextlib
import functools
import math
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from fairseq.trainer import Trainer

from music_ssl_fairseq.compat import one_line_errors
from music_ssl_fairseq.errors import InputError

_MAX_NAMED_TRACKS = 8  # per message


@dataclass(frozen=True)
class _Update:
    """The crops of an update: `[batches][crops]` indices of an epoch."""

    number: int
    epoch: int
    batches: list[list[int]]


def patch_non_finite() -> None:
    """Let fairseq's trainer name tracks instead of writing `crash.pt` and a traceback."""
    patched = functools.partialmethod
    Trainer.train_step = patched(_train_step, Trainer.train_step)
    Trainer.begin_epoch = patched(_begin_epoch, Trainer.begin_epoch)
    Trainer.clip_grad_norm = patched(_clip_grad_norm, Trainer.clip_grad_norm)


def _begin_epoch(trainer: Any, begin: Callable[..., Any], epoch: int) -> Any:
    trainer.epoch_of_updates = epoch
    return begin(trainer, epoch)


def _train_step(
    trainer: Any, step: Callable[..., Any], samples: list[Any], *args: Any, **kwargs: Any
) -> Any:
    """Keep the last two updates, because on a GPU an update's norm is known one update later."""
    batches = [s["id"].tolist() for s in samples if isinstance(s, dict) and "id" in s]
    updates = vars(trainer).setdefault("last_updates", deque(maxlen=2))
    updates.append(_Update(trainer.get_num_updates() + 1, trainer.epoch_of_updates, batches))
    logged = step(trainer, samples, *args, **kwargs)
    if logged and not math.isfinite(logged.get("loss", 0.0)):
        with one_line_errors():
            raise _error(trainer, "the loss")
    return logged


def _clip_grad_norm(trainer: Any, clip: Callable[..., Any], clip_norm: float) -> Any:
    try:
        norm = clip(trainer, clip_norm)
        finite = trainer.cfg.common.amp or bool(torch.isfinite(norm).all())
    except FloatingPointError:  # fp16: no scale of the loss was small enough
        finite = False
    if not finite:
        with one_line_errors():
            raise _error(trainer, "a gradient")
    return norm


def _error(trainer: Any, what: str) -> InputError:
    updates = trainer.last_updates
    begin = f"update {updates[-1].number}: {what} is not finite"
    if not all(bool(p.isfinite().all()) for p in trainer.model.parameters()):
        return InputError(
            f"{begin}, and nor are the weights: training has diverged; continue from an earlier "
            "checkpoint (checkpoint.restore_file=...) with a lower optimization.lr"
        )
    dataset = trainer.task.dataset(trainer.cfg.dataset.train_subset)
    found = [
        (update, batch)
        for update in updates
        for batch in update.batches
        if not _is_finite(trainer, dataset, update, batch)
    ]
    if not found:
        return InputError(
            f"{begin}, though each of this process's batches by itself gives finite ones: another "
            "process's message may name its tracks, or lower optimization.lr"
        )
    update, batch = found[0]
    return InputError(
        f"update {update.number}: the loss or a gradient is not finite in the batch of "
        f"{_name_tracks(dataset, update, batch)}; listen to these tracks, leave out what is "
        "damaged, or lower optimization.lr"
    )


def _is_finite(trainer: Any, dataset: Any, update: _Update, batch: list[int]) -> bool:
    """Compute one batch again, and return whether its loss and gradients are finite."""
    trainer.zero_grad()
    dataset.set_epoch(update.epoch)
    sample, _ = trainer._prepare_sample(dataset.collater([dataset[index] for index in batch]))
    alone = getattr(trainer.model, "no_sync", contextlib.nullcontext)
    with alone():
        loss, _, _ = trainer.task.train_step(
            sample, trainer.model, trainer.criterion, trainer.optimizer, update.number - 1, False
        )
    gradients = [p.grad for p in trainer.model.parameters() if p.grad is not None]
    return all(bool(tensor.isfinite().all()) for tensor in [loss, *gradients])


def _name_tracks(dataset: Any, update: _Update, batch: list[int]) -> str:
    """List the batch's tracks, the largest samples first."""
    peaks: dict[str, float] = {}
    for index in batch:
        name, peak = dataset.describe_crop(index, update.epoch)
        peaks[name] = max(peak, peaks.get(name, 0.0))
    loudest = sorted(peaks, key=lambda name: -peaks[name])
    named = ", ".join(f"{name} (up to {peaks[name]:.3g})" for name in loudest[:_MAX_NAMED_TRACKS])
    unnamed = len(loudest) - _MAX_NAMED_TRACKS
    return f"{named} and {unnamed} more" if unnamed > 0 else named
