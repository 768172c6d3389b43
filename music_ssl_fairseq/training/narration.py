"""Print the start, progress, outcome and next command of a training to its console.

`hydra_plugins/_music_ssl_fairseq_console.py` prints the lines, and the log has them too. A task
says what it trains (`start_lines`), the best validation so far or "" (`best_line`), and the command
that follows a complete training, with this run's paths (`next_command`).
"""

import logging
import os
import shlex
import statistics
import sys
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch

from hydra_plugins._music_ssl_fairseq_command import config_dirs, shell_line
from music_ssl_fairseq.compat import is_training_command
from music_ssl_fairseq.frames import amount, counted

logger = logging.getLogger(__name__)

_MEASURED_UPDATES, _SLOW_UPDATES, _SLOW_SECONDS = 20, 5, 60.0
"""Updates whose median is the expected time; five are enough if they took a minute or more.

The first updates on a GPU take many times as long: kernels are compiled and graphs recorded.
"""

_MAX_WEIGHTS = 20_000_000
"""Weights of a model that takes days to train on a CPU."""

_BASE_WEIGHTS, _CPU_GB = 94_700_000, 0.085
"""Weights of a base model, and the GB that its update needs per second of audio on a CPU."""


def say(text: str) -> None:
    """Print a line, and log it."""
    logger.info(text, extra={"console": True})


def shown(path: str | os.PathLike) -> str:
    """Return a path as one types it here: relative if it lies below the current folder."""
    absolute = os.path.abspath(path)
    relative = os.path.relpath(absolute)
    return absolute if relative.startswith("..") else relative


class Narration:
    """Lines about the training, in the console of the first process; the others print none."""

    def __init__(self) -> None:
        self._trainer: Any = None  # while it is narrated
        self._folder = ""
        self._times: list[float] | None = None

    def begin(self, trainer: Any) -> None:
        """Print the model, its data, the device and the folder."""
        self._trainer = None
        cfg, task = trainer.cfg, trainer.task
        of_fairseq = not hasattr(task, "start_lines")  # a stock task beside our package
        if not is_training_command() or trainer.data_parallel_rank or of_fairseq or task.finished:
            return
        self._trainer, self._times = trainer, []
        for line in task.start_lines(cfg, trainer.get_model()):
            say(line)
        say(_device_line(cfg))
        self._folder = shown(os.path.dirname(os.path.abspath(cfg.checkpoint.save_dir)))
        done = trainer.get_num_updates()
        from_where = f", from update {done} on" if done else ""
        curves = f"; curves: tensorboard --logdir {shell_line(shlex.quote(self._folder))}"
        say(
            f"writes to {self._folder}{from_where}{curves if cfg.common.tensorboard_logdir else ''}"
        )
        weights = sum(p.numel() for p in trainer.get_model().parameters())
        on_cpu = not trainer.cuda and hasattr(task.cfg, "crop_seconds")
        if on_cpu and weights > _MAX_WEIGHTS:
            seconds = (cfg.dataset.batch_size or 0) * task.cfg.crop_seconds
            memory = 2 + seconds * _CPU_GB * weights / _BASE_WEIGHTS
            logger.warning(
                "no GPU: %d million weights take days to train on a CPU, and some %d GB of memory. "
                "The whole way in minutes: %s",
                weights / 1e6,
                memory,
                _smaller_command(),
            )

    def update(self) -> None:
        """Note that an update is done."""
        if self._trainer is None:
            return
        number = self._trainer.get_num_updates()
        now = time.monotonic()
        total = self._trainer.cfg.optimization.max_update or None
        for console in _consoles():
            console.move(number, total, self._folder)
        if self._times is not None:
            self._times.append(now)
            self._say_expected_time(number, self._times, total)

    def _say_expected_time(self, number: int, times: list[float], total: int | None) -> None:
        """Say how long it will take, once enough updates have ended at `times` (seconds)."""
        count = len(times) - 1
        is_slow = count >= _SLOW_UPDATES and times[-1] - times[0] >= _SLOW_SECONDS
        if count < _MEASURED_UPDATES and not is_slow:
            return
        self._times = None
        each = statistics.median(late - early for early, late in pairwise(times))
        left = amount(each * (total - number) / 3600) if total else ""
        say(f"{each:.2g} s per update" + (left and f": about {left} to go, without validation"))

    def end(self) -> None:
        """Print the outcome of a complete training, and the next command."""
        if self._trainer is None:
            return
        _remove_bar()
        trainer, cfg = self._trainer, self._trainer.cfg
        spent = amount(trainer.cumulative_training_time() / 3600)
        say(f"trained: {counted(trainer.get_num_updates(), 'update')} in {spent}{self._best()}")
        if not cfg.checkpoint.no_save:
            say(f"next: {shell_line(trainer.task.next_command(cfg))}")
        self._trainer = None

    def stop(self) -> str:
        """Remove the bar; return what is best so far, for the line about an interruption."""
        _remove_bar()
        found = self._best() if self._trainer is not None else ""
        self._trainer = None
        return found

    def _best(self) -> str:
        cfg = self._trainer.cfg
        best = self._trainer.task.best_line(cfg)
        if not best:
            return ""
        name = f"checkpoint_best{self._trainer.checkpoint_suffix}.pt"
        file = Path(cfg.checkpoint.save_dir, name)
        # A run that continues another's file may never be better than that one.
        return f"; best saved {best}, {shown(file)}" if file.exists() else f"; {best}"


def _device_line(cfg: Any) -> str:
    processes = cfg.distributed_training.distributed_world_size
    if torch.cuda.is_available() and not cfg.common.cpu:
        name = torch.cuda.get_device_name()
        device = f"{processes} x {name}" if processes > 1 else name
    else:
        device = f"CPU, {counted(torch.get_num_threads(), 'thread')}"
    limits = cfg.optimization
    ends = [counted(limits.max_update, "update")] if limits.max_update else []
    ends += [counted(limits.max_epoch, "epoch")] if limits.max_epoch else []
    return f"on {device}, for {' or '.join(ends) or 'ever, until it is stopped'}"


def _smaller_command() -> str:
    """Return this command with the configuration `tiny`, and the user's data."""
    kept = [a for a in sys.argv[1:] if a.startswith(("task.data=", "task.label_dir="))]
    folder = next(iter(config_dirs(sys.argv)), "examples/music_hubert")
    words = ["fairseq-hydra-train", "--config-dir", folder, "--config-name", "tiny", *kept]
    return shell_line(shlex.join(words))


def _consoles() -> list[Any]:
    """Return hydra's handlers that print to a console."""
    return [handler for handler in logging.getLogger().handlers if hasattr(handler, "move")]


def _remove_bar() -> None:
    for console in _consoles():
        console.end()


narration = Narration()
"""The narration of this process."""
