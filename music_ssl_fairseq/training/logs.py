"""Logs: settings in TensorBoard, and training that continues without logs on a full disk."""

import errno
import functools
import logging
import sys
import threading
from collections.abc import Callable
from typing import Any

from music_ssl_fairseq.training.trackers import begin_once, log_together

_GROUPS = ("model", "task", "criterion", "optimization", "optimizer", "lr_scheduler", "dataset")
_SHOWN: set[str] = set()
"""TensorBoard folders of this process whose settings are shown."""

_FULL_DISK_ERRORS = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


def patch_logs() -> None:
    """Report a log that cannot be written in one line, instead of a traceback per log line."""
    from fairseq.logging import progress_bar

    handler: Any = logging.FileHandler
    handler.handleError = functools.partialmethod(_handle_error, handler.handleError)
    threading.excepthook = functools.partial(_excepthook, threading.excepthook)
    progress_bar.WandBProgressBarWrapper.__init__ = begin_once
    progress_bar.WandBProgressBarWrapper._log_to_wandb = log_together
    bar = progress_bar.TensorboardProgressBarWrapper
    bar.update_config = functools.partialmethod(_update_config, bar.update_config)
    bar._log_to_tensorboard = functools.partialmethod(_log_to_tensorboard, bar._log_to_tensorboard)


def _handle_error(handler: Any, handle: Callable[..., None], record: logging.LogRecord) -> None:
    error = sys.exc_info()[1]
    if not _is_full_disk(error):
        handle(handler, record)
    elif not getattr(handler, "reported_full", False):
        handler.reported_full = True
        _report(handler.baseFilename, error)


def _excepthook(hook: Callable[..., Any], args: Any) -> Any:
    """Silence Tensorboard's thread, whose error is raised again at the next logged number."""
    if not _is_full_disk(args.exc_value):
        hook(args)


def _update_config(bar: Any, update: Callable[..., None], config: dict[str, Any]) -> None:
    """Show a run's settings under HPARAMS in TensorBoard, where fairseq has a TODO; once."""
    from torch.utils.tensorboard.summary import hparams

    update(bar, config)
    if bar.tensorboard_logdir in _SHOWN:
        return
    _SHOWN.add(bar.tensorboard_logdir)
    groups = {name: settings for name, settings in config.items() if name in _GROUPS}
    values = {
        f"{name}.{key}": value if isinstance(value, bool | int | float) else str(value)
        for name, settings in groups.items()
        for key, value in (settings or {}).items()
    }
    try:
        writer = bar._writer("train_inner")
        for summary in hparams(values, {"loss": None}) if writer is not None else ():
            writer.file_writer.add_summary(summary)
    except OSError as error:
        if not _is_full_disk(error):
            raise


def _log_to_tensorboard(bar: Any, log: Callable[..., None], *args: Any, **kwargs: Any) -> None:
    from fairseq.logging import progress_bar

    if getattr(progress_bar, "tensorboard_is_full", False):
        return
    try:
        log(bar, *args, **kwargs)
    except OSError as error:
        if not _is_full_disk(error):
            raise
        progress_bar.tensorboard_is_full = True
        progress_bar._tensorboard_writers.clear()  # closing them would fail too
        _report(bar.tensorboard_logdir, error)


def _is_full_disk(error: BaseException | None) -> bool:
    return isinstance(error, OSError) and error.errno in _FULL_DISK_ERRORS


def _report(file: str, error: Any) -> None:
    print(f"warning: {file}: {error.strerror}; training continues without it", file=sys.stderr)
