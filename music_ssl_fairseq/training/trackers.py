"""Experiment trackers: Weights & Biases, as fairseq has it, or trackio, which needs no account."""

import json
import os
from pathlib import Path
from typing import Any

from fairseq.logging import progress_bar
from fairseq.logging.meters import AverageMeter

from music_ssl_fairseq.errors import InputError
from music_ssl_fairseq.runtime.optional import optional

_WANDB = progress_bar.wandb  # None if it is not installed
_NAME = "WANDB_NAME"
_OWN_NAME = "MUSIC_SSL_RUN_NAME"  # the last name that was given here, in a sweep the run's before


def choose_tracker(cfg: Any) -> None:
    """Prepare the tracker of a run's whole configuration, if it asks for one.

    fairseq names runs by WANDB_NAME, or else all alike by the last part of `checkpoint.save_dir`.
    Here the name is that of the run's folder and the one above.

    Raises:
        InputError: if it asks for both trackers, or for one that is not installed.
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
    """What fairseq uses of wandb, by trackio. A run that is continued keeps its name and curves."""

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
    """Send a line of numbers to wandb or trackio at once; fairseq sends each number by itself."""
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
