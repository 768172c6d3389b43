"""Logs: settings in TensorBoard, experiment trackers, and training without logs on a full disk.

Trackers are Weights & Biases, as fairseq has it, and trackio, which needs no account.
"""

import functools
import json
import logging
import os
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fairseq.logging import progress_bar
from fairseq.logging.meters import AverageMeter

from hydra_plugins._music_ssl_fairseq_command import FULL_DISK
from music_ssl_fairseq.errors import InputError, one_line
from music_ssl_fairseq.runtime.imports import optional

_GROUPS = ("model", "task", "criterion", "optimization", "optimizer", "lr_scheduler", "dataset")
_SHOWN: set[str] = set()
"""TensorBoard folders of this process whose settings are shown."""


def patch_logs() -> None:
    """Report a log that cannot be written in one line, instead of a traceback per log line."""
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
    if not _cannot_be_written(error):
        handle(handler, record)
    elif not getattr(handler, "reported_full", False):
        handler.reported_full = True
        _report(handler.baseFilename, error)


def _excepthook(hook: Callable[..., Any], args: Any) -> Any:
    """Silence Tensorboard's thread, whose error is raised again at the next logged number."""
    if not _cannot_be_written(args.exc_value):
        hook(args)


def _update_config(bar: Any, update: Callable[..., None], config: dict[str, Any]) -> None:
    """Show a run's settings under HPARAMS in TensorBoard, once. fairseq does not show them."""
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
    except (OSError, UnicodeEncodeError) as error:
        if not _cannot_be_written(error):
            raise


def _log_to_tensorboard(bar: Any, log: Callable[..., None], *args: Any, **kwargs: Any) -> None:
    if getattr(progress_bar, "tensorboard_is_full", False):
        return
    try:
        log(bar, *args, **kwargs)
    except (OSError, UnicodeEncodeError) as error:
        if not _cannot_be_written(error):
            raise
        progress_bar.tensorboard_is_full = True
        progress_bar._tensorboard_writers.clear()  # closing them would fail too
        _report(bar.tensorboard_logdir, error)


def _cannot_be_written(error: BaseException | None) -> bool:
    """Return whether the disk is full, or TensorBoard refuses a folder's name."""
    full = isinstance(error, OSError) and error.errno in FULL_DISK
    return full or isinstance(error, UnicodeEncodeError)


def _report(file: str, error: Any) -> None:
    reason = getattr(error, "strerror", None) or "its name is not UTF-8"
    line = f"warning: {one_line(file)}: {reason}; training continues without it"
    print(line, file=sys.stderr)


_WANDB = progress_bar.wandb  # None if it is not installed
_NAME = "WANDB_NAME"
_OWN_NAME = "MUSIC_SSL_RUN_NAME"  # the last name that was given here, in a sweep the run's before


def choose_tracker(cfg: Any) -> None:
    """Prepare the tracker of a run's whole configuration, if it asks for one.

    fairseq names runs by WANDB_NAME, or else all alike by the last part of `checkpoint.save_dir`.
    Here the name is that of the run's folder and the one above.

    Raises InputError if it asks for both trackers, or for one that is not installed.
    """
    wandb, trackio = cfg.common.wandb_project, cfg.task.get("trackio_project")
    progress_bar.wandb = _WANDB
    if _WANDB is not None and _WANDB.run is not None:  # the run before, of a sweep
        _WANDB.finish()
    if not wandb and not trackio:
        return
    if wandb and trackio and wandb != trackio:  # in a sweep it is the one before
        raise InputError("common.wandb_project and task.trackio_project: give one of them")
    if os.environ.get(_NAME, "") == os.environ.get(_OWN_NAME, ""):
        folders = Path(os.path.abspath(cfg.checkpoint.save_dir)).parent.parts
        os.environ[_NAME] = os.environ[_OWN_NAME] = "/".join(folders[-2:])
    if trackio:
        progress_bar.wandb = _Trackio(optional("trackio", "trackio"))
        cfg.common.wandb_project = trackio
    elif _WANDB is None:
        raise InputError(
            f"common.wandb_project={wandb} needs wandb: run `pip install wandb`; without an "
            f"account: task.trackio_project={wandb}"
        )


class _Trackio:
    """Trackio with wandb's functions that fairseq calls. A resumed run keeps name and curves."""

    def __init__(self, module: Any):
        self._module = module
        self._given: dict[str, Any] = {}
        self._begun = False
        self.config: dict[str, Any] = {}
        self.run: Any = None

    def init(self, project: str, name: str) -> None:
        """Note project and name: a run begins with its first numbers, when it has settings."""
        self._given = {"project": project, "name": name}
        self.run = name

    def log(self, numbers: dict[str, float], step: int) -> None:
        if not self._begun:
            groups = {name: g for name, g in self.config.items() if not name.startswith("_")}
            config = json.loads(json.dumps(groups, default=str))
            self._module.init(**self._given, config=config, resume="allow", embed=False)
            self._begun = True
        self._module.log(numbers, step=step)


def begin_once(bar: Any, wrapped_bar: Any, wandb_project: str, run_name: str | None = None) -> None:
    """Begin a run with its first progress bar; fairseq does so for each epoch and validation."""
    bar.wrapped_bar = wrapped_bar
    tracker = progress_bar.wandb
    if tracker is not None and tracker.run is None:
        tracker.init(project=wandb_project, name=run_name)


def log_together(bar: Any, stats: Any, tag: str | None = None, step: int | None = None) -> None:
    """Send a line of numbers to wandb or trackio at once; fairseq sends one number per call."""
    tracker = progress_bar.wandb
    if tracker is None:
        return
    values = {key: s.val if isinstance(s, AverageMeter) else s for key, s in stats.items()}
    prefix = "" if tag is None else f"{tag}/"
    numbers = {
        f"{prefix}{key}": value
        for key, value in values.items()
        if key != "num_updates" and isinstance(value, int | float)
    }
    tracker.log(numbers, step=stats["num_updates"] if step is None else step)
