"""Patches of fairseq's training loop that stop it after a signal.

All processes stop at the same update, or in the same batch of a validation: the flag travels with
the counts that they exchange anyway. A validation is abandoned: its update is saved as one whose
validation is still due, and the next run begins with that.
"""

import functools
import math
from collections.abc import Callable
from difflib import get_close_matches
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from fairseq import checkpoint_utils
from fairseq.trainer import Trainer

from music_ssl_fairseq.compat import one_line_errors
from music_ssl_fairseq.errors import InputError
from music_ssl_fairseq.runtime.user_command import with_setting
from music_ssl_fairseq.training.background import writer
from music_ssl_fairseq.training.interruption import RESUBMIT, interruption
from music_ssl_fairseq.training.narration import narration, say, shown
from music_ssl_fairseq.training.processes import is_distributed
from music_ssl_fairseq.training.saving import finish_saving, prepare_saving, resume_file

_PENDING = "after_update"
"""Key in a checkpoint for what is still due after its update: saving and validation."""


class _ValidationAbandoned(Exception):
    """Raised to leave a validation."""


class _NoSuchMetric(InputError):
    """Raised where validation does not give `checkpoint.best_checkpoint_metric`."""


def patch_stopping() -> None:
    """Let fairseq's training loop stop at a signal and resume."""
    from fairseq_cli import train as loop

    validate_and_save, train = loop.validate_and_save, loop.train
    loop.validate_and_save = functools.partial(_validate_and_save, validate_and_save)
    loop.train = functools.partial(_train, train, validate_and_save)
    loop.get_valid_stats = functools.partial(_valid_stats, loop.get_valid_stats)
    load = checkpoint_utils.load_checkpoint
    checkpoint_utils.load_checkpoint = functools.partial(_load_checkpoint, load)
    Trainer.at_last_update, Trainer.pending = False, None
    patched = functools.partialmethod
    Trainer.train_step = patched(_train_step, Trainer.train_step)
    Trainer.valid_step = patched(_valid_step, Trainer.valid_step)
    Trainer.lr_step = patched(_lr_step, Trainer.lr_step)
    Trainer._aggregate_logging_outputs = patched(_aggregate, Trainer._aggregate_logging_outputs)


def _load_checkpoint(load: Callable[..., Any], cfg: Any, trainer: Any, **kwargs: Any) -> Any:
    """Load a checkpoint, and note what is still due after its update."""
    interruption.install()
    extra_state, epoch_itr = load(cfg, trainer, **kwargs)
    if not trainer.get_num_updates():  # weights alone: their training is no part of this one
        trainer._previous_training_time = 0
    if extra_state and _PENDING in extra_state and not cfg.reset_dataloader:
        trainer.pending = {"position": extra_state["train_iterator"], **extra_state[_PENDING]}
    if not _rate_ends_run(trainer):
        narration.begin(trainer)
    return extra_state, epoch_itr


def _rate_ends_run(trainer: Any) -> bool:
    """Return whether fairseq will train nothing, because the learning rate is too low already."""
    rate = trainer.get_lr()
    least = trainer.cfg.optimization.stop_min_lr
    if rate > least or getattr(trainer.task, "finished", ""):
        return False
    reason = f"the learning rate is {rate:g}, and optimization.stop_min_lr is {least:g}"
    with one_line_errors():
        if not trainer.get_num_updates():
            raise InputError(
                f"{reason}, so that nothing is trained", with_setting("optimization.stop_min_lr=")
            )
    say(f"finished: {reason}. Nothing is left to do")
    return True


def _train(
    original: Callable[..., Any],
    validate_and_save: Callable[..., Any],
    cfg: Any,
    trainer: Any,
    task: Any,
    epoch_itr: Any,
) -> Any:
    """Train an epoch with fairseq's function, after what is pending from the run before.

    A finished run is not trained: fairseq's loop would make and save one more update.
    """
    if getattr(task, "finished", ""):
        return [None], True
    losses, stop = _finish_pending(validate_and_save, cfg, trainer, task)
    if stop:
        return losses, stop
    losses, stop = original(cfg, trainer, task, epoch_itr)
    limit = cfg.optimization.max_epoch or math.inf
    if stop or epoch_itr.next_epoch_idx > limit:
        if not stop and epoch_itr.epoch % cfg.checkpoint.save_interval:
            _save(cfg, trainer, epoch_itr, pending=False)  # fairseq keeps nothing of this epoch
        _end()
    return losses, stop


def _finish_pending(
    validate_and_save: Callable[..., Any], cfg: Any, trainer: Any, task: Any
) -> tuple[list[Any], bool]:
    """Do what is due after the last run's last update; return losses, and whether to stop."""
    pending, trainer.pending = trainer.pending, None
    if not pending:
        return [None], False
    position, epoch, end = (pending[key] for key in ("position", "epoch", "end_of_epoch"))
    # An epoch's iterator in its state after that update.
    resumed_itr = SimpleNamespace(
        epoch=epoch, end_of_epoch=lambda: end, state_dict=lambda: position
    )
    subsets = cfg.dataset.valid_subset.split(",")
    losses, stop = validate_and_save(cfg, trainer, task, resumed_itr, subsets, end)
    if stop:
        _end()
    elif end:
        stop = trainer.lr_step(epoch, losses[0]) <= cfg.optimization.stop_min_lr
    return losses, stop


def _end() -> None:
    """Wait for checkpoints and tell the outcome, where the program may end."""
    finish_saving()
    narration.end()


def _train_step(trainer: Any, step: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    interruption.training = True
    return step(trainer, *args, **kwargs)


def _validate_and_save(
    original: Callable[..., Any], cfg: Any, trainer: Any, task: Any, epoch_itr: Any, *args: Any
) -> Any:
    """Run fairseq's function, which it calls after every update, and stop if a signal came."""
    with one_line_errors():
        writer.check()
    prepare_saving(trainer)
    narration.update()
    last = 0 < (cfg.optimization.max_update or 0) <= trainer.get_num_updates()
    trainer.at_last_update = last  # then a signal only makes the state be saved first
    if _stop_requested(trainer):
        _save(cfg, trainer, epoch_itr, pending=True)
        if not last:
            _exit(cfg, trainer)
    try:
        result = original(cfg, trainer, task, epoch_itr, *args)
    except _ValidationAbandoned:
        _save(cfg, trainer, epoch_itr, pending=True)
        _exit(cfg, trainer)
    except _NoSuchMetric as error:
        _save(cfg, trainer, epoch_itr, pending=True)
        finish_saving()
        with one_line_errors():
            raise error from None
    if _stop_requested(trainer) and not result[1]:
        _save(cfg, trainer, epoch_itr, pending=False)
        _exit(cfg, trainer)
    return result


def _valid_step(trainer: Any, step: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    result = step(trainer, *args, **kwargs)
    if interruption.training and _stop_requested(trainer) and not trainer.at_last_update:
        raise _ValidationAbandoned
    return result


def _valid_stats(
    original: Callable[..., Any], cfg: Any, trainer: Any, stats: dict[str, Any], *args: Any
) -> dict[str, Any]:
    """Return fairseq's statistics of a validation, which must have the metric of the best one."""
    metric = cfg.checkpoint.best_checkpoint_metric
    if metric not in stats:
        near = get_close_matches(metric, stats, 1, 0) or ["loss"]
        raise _NoSuchMetric(
            f"checkpoint.best_checkpoint_metric={metric}: validation gives {', '.join(stats)}",
            with_setting(f"checkpoint.best_checkpoint_metric={near[0]}"),
        )
    return original(cfg, trainer, stats, *args)


def _stop_requested(trainer: Any) -> bool:
    if trainer.data_parallel_world_size == 1:
        return interruption.received is not None
    return interruption.agreed


def _aggregate(
    trainer: Any, aggregate: Callable[..., Any], logs: Any, *stats: Any, **kwargs: Any
) -> Any:
    """Sum a flag for received signals over processes, with what is summed anyway."""
    flag = float(interruption.received is not None)
    logs, (*stats, received) = aggregate(trainer, logs, *stats, flag, **kwargs)
    interruption.agreed = interruption.agreed or bool(received > 0)
    return logs, stats


def _lr_step(trainer: Any, step: Callable[..., Any], *args: Any, **kwargs: Any) -> float:
    """Set the learning rate after an epoch; at `stop_min_lr` fairseq's loop ends."""
    rate = step(trainer, *args, **kwargs)
    if rate <= trainer.cfg.optimization.stop_min_lr:
        _end()
    return rate


def _save(cfg: Any, trainer: Any, epoch_itr: Any, pending: bool) -> None:
    """Save to the file from which the next run resumes."""
    if cfg.checkpoint.no_save:
        return
    trainer.consolidate_optimizer()
    position = epoch_itr.state_dict()
    state = {"train_iterator": position, "val_loss": None}
    if hasattr(trainer.task, "get_checkpoint_dict"):
        state |= trainer.task.get_checkpoint_dict()
    best = getattr(checkpoint_utils.save_checkpoint, "best", None)
    if best is not None:
        state["best"] = best
    if pending:
        state[_PENDING] = {"epoch": epoch_itr.epoch, "end_of_epoch": epoch_itr.end_of_epoch()}
    with one_line_errors():
        trainer.save_checkpoint(str(_resume_path(cfg, trainer)), state)


def _exit(cfg: Any, trainer: Any) -> None:
    finish_saving()
    file = _resume_path(cfg, trainer)
    no_save = cfg.checkpoint.no_save
    saved = "is the last, as checkpoint.no_save says" if no_save else f"is saved in {shown(file)}"
    if trainer.data_parallel_rank == 0:
        best = narration.stop()
        interruption.say(f"update {trainer.get_num_updates()} {saved}{best}")
    if is_distributed():
        torch.distributed.barrier()  # srun ends all processes once one has ended
    interruption.saved = True
    raise SystemExit(RESUBMIT)


def _resume_path(cfg: Any, trainer: Any) -> Path:
    expected = resume_file(cfg.checkpoint, trainer.checkpoint_suffix)
    return Path(cfg.checkpoint.save_dir, expected.name)
