"""Checks of a run's folder: one run and one process train in it."""

import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

import torch
from fairseq.tasks import FairseqTask
from omegaconf import OmegaConf

from music_ssl_fairseq.compat import patch_resuming
from music_ssl_fairseq.criterions.collapse import warmup_updates
from music_ssl_fairseq.data.run_identity import Identity, differences, settings_identity
from music_ssl_fairseq.errors import InputError
from music_ssl_fairseq.runtime.files import hold
from music_ssl_fairseq.runtime.user_command import beside, with_setting
from music_ssl_fairseq.tasks.refusals import check_schedule, configs_of, whole_configuration
from music_ssl_fairseq.training.checkpoints import checkpoint_to_resume
from music_ssl_fairseq.training.logs import choose_tracker
from music_ssl_fairseq.training.narration import say
from music_ssl_fairseq.training.processes import is_distributed
from music_ssl_fairseq.training.run_state import (
    early_stopping,
    forget_earlier_run,
    take_early_stopping,
)
from music_ssl_fairseq.training.saving import LAST, resume_file
from music_ssl_fairseq.upstream.safe_load import safe_load

logger = logging.getLogger(__name__)

IDENTITY = "identity"
EARLY_STOPPING = "early_stopping"
BEGAN_WITH = "began_with"
"""Keys in a checkpoint's `task_state`, beside `IDENTITY`: see `RunFolder.state`."""

_RESETS = ("reset_optimizer", "reset_lr_scheduler", "reset_meters", "reset_dataloader")

_lock: IO[bytes] | None = None


class RunFolder:
    """The folder of a run that is about to train."""

    def __init__(self) -> None:
        self.identity: Identity = {}  # of this run, kept in its checkpoints
        self.finished = ""  # why nothing is left to train, or empty
        # The checkpoint.restore_file or checkpoint.reset_* that the run started with, or empty
        self.began_with = ""

    def enter(
        self, task_cfg: Any, data: Callable[[Any], Identity], own_restore_file: bool = False
    ) -> None:
        """Lock the folder, and check the checkpoint that the run would resume.

        Args:
            task_cfg: the task's part of fairseq's whole configuration. Without the whole, nothing
                is checked.
            data: from the whole configuration to the identity of the training data.
            own_restore_file: whether our own configuration sets checkpoint.restore_file, which
                then does not mean that the user wants to start from that file.

        Raises:
            InputError: if another process trains here, or the checkpoint is of another run.
            SystemExit: in processes other than the first, which raises the error.
        """
        cfg = whole_configuration(task_cfg)
        if cfg is None:
            return
        choose_tracker(cfg)
        forget_earlier_run()
        if cfg.checkpoint.no_save:
            return
        patch_resuming()
        check_schedule(cfg)
        if cfg.checkpoint.write_checkpoints_asynchronously:  # makes no checkpoint_last.pt
            cfg.checkpoint.write_checkpoints_asynchronously = False
            logger.info("task.background_saves is what writes checkpoints asynchronously here")
        own = cfg.checkpoint.restore_file if own_restore_file else LAST
        self.began_with = _beginning(cfg.checkpoint, own)
        if self.began_with:
            _continue_own(cfg.checkpoint, self.began_with, own)
        problem = None
        if not is_distributed() or torch.distributed.get_rank() == 0:
            try:
                self._enter(cfg, data, own)
            except InputError as error:
                problem = error
        self._tell_others(problem)
        if self.finished:
            say(f"finished: {self.finished}")

    def _enter(self, cfg: Any, data: Callable[[Any], Identity], own: str) -> None:
        global _lock
        folder = Path(cfg.checkpoint.save_dir)
        if _lock is not None:  # the run before, of a sweep
            _lock.close()
        _lock = hold(
            folder.with_name(f"{folder.name}.lock"),
            "trains",
            "wait for it or stop it, or give another hydra.run.dir",
        )
        groups = ("model", "task", "criterion")
        settings: Any = {
            name: OmegaConf.to_container(cfg[name], resolve=True, enum_to_str=True)
            for name in groups
            if cfg.get(name) is not None
        }
        self.identity = settings_identity(settings, configs_of(cfg)) | data(cfg)
        warmup, updates = warmup_updates(cfg), cfg.optimization.max_update
        if 0 < updates <= warmup:
            logger.warning(
                "optimization.max_update=%d: the learning rate never reaches its peak, because "
                "lr_scheduler warms up for %d updates; give more updates, or a shorter warm-up",
                updates,
                warmup,
            )
        file, state = _checkpoint_to_continue(cfg.checkpoint)
        if file is None:
            return
        self.began_with = self.began_with or _noted(state, BEGAN_WITH) or ""
        self._compare(file, state, on_purpose=cfg.checkpoint.restore_file != own)
        if state.get("last_optimizer_state") is None and not cfg.checkpoint.reset_optimizer:
            logger.warning(
                "%s: has no optimizer state (checkpoint.no_save_optimizer_state), so updates, "
                "optimizer and learning rate start anew, from its weights",
                file,
            )
        take_early_stopping(_noted(state, EARLY_STOPPING))
        self.finished = _finished(cfg, state, file)

    def _compare(self, file: Path, state: dict[str, Any], on_purpose: bool) -> None:
        there = _noted(state, IDENTITY)
        if there is None:
            logger.warning(
                "%s: an earlier version wrote it without its data and settings, so whether it "
                "belongs to this run is not checked",
                file,
            )
            return
        found = differences(self.identity, there)
        if found and on_purpose:
            logger.warning(
                "%s: is of another run (%s); training continues from it, as "
                "checkpoint.restore_file says",
                file,
                found,
            )
        elif found:
            raise InputError(
                f"{file}: is of another run: {found}. To continue it, give back its data and "
                f"settings; to start from its model, checkpoint.restore_file={file}; to train "
                "beside it, another hydra.run.dir",
                with_setting(f"hydra.run.dir={beside(file.parent.parent)}"),
            )

    def _tell_others(self, problem: InputError | None) -> None:
        if is_distributed():
            told: list[Any] = [problem is not None, self.finished, early_stopping()]
            torch.distributed.broadcast_object_list(told, src=0)
            failed, self.finished, stopping = told
            take_early_stopping(stopping)
            if failed and problem is None:
                raise SystemExit(1)
        if problem is not None:
            raise problem

    def state(self) -> dict[str, Any]:
        """Return the plain values that a checkpoint keeps."""
        if not self.identity:
            return {}
        return {
            IDENTITY: dict(self.identity),
            EARLY_STOPPING: early_stopping(),
            BEGAN_WITH: self.began_with,
        }


def _noted(state: dict[str, Any], name: str) -> Any:
    return (state.get("task_state") or {}).get(name)


def _beginning(cfg: Any, own: str) -> str:
    """Return the checkpoint or the resets with which a command begins a run, or an empty string.

    `own` is the file from which a run resumes.
    """
    if cfg.restore_file != own:
        return os.path.realpath(cfg.restore_file)
    return " ".join(f"checkpoint.{name}=true" for name in _RESETS if cfg[name])


def _continue_own(cfg: Any, began_with: str, own: str) -> None:
    """Let a run that began with a file or resets continue with its own checkpoint, whole.

    fairseq begins with them whenever the command runs: an interrupted and resubmitted run would
    lose what it has trained.
    """
    file, state = _checkpoint_to_continue(OmegaConf.merge(cfg, {"restore_file": own}))
    if file is None or _noted(state, BEGAN_WITH) != began_with:
        return
    cfg.restore_file = own
    for name in _RESETS:
        cfg[name] = False
    say(
        f"{file}: continues this run, which began with {began_with}; to begin with it again, give "
        "another hydra.run.dir"
    )


def _checkpoint_to_continue(cfg: Any) -> tuple[Path | None, dict[str, Any]]:
    """Return the checkpoint that will be loaded, and its content.

    An unreadable checkpoint counts as none here: fairseq's loading reports the error.
    """
    suffix = cfg.checkpoint_suffix
    try:
        file = checkpoint_to_resume(Path(cfg.save_dir), resume_file(cfg, suffix), suffix)
        state = None if file is None else safe_load(file)
    except InputError:
        return None, {}
    return (file, state) if isinstance(state, dict) else (None, {})


def _finished(cfg: Any, state: dict[str, Any], file: Path) -> str:
    """Return why a checkpoint's run is finished; empty if it is not."""
    limits = cfg.optimization
    extra = state.get("extra_state") or {}
    if extra.get("after_update"):  # a signal came before its last validation
        return ""
    history = state.get("optimizer_history") or [{}]
    updates = history[-1].get("num_updates", 0)
    epoch = (extra.get("train_iterator") or {}).get("epoch", 1)
    updates = 0 if cfg.checkpoint.reset_optimizer else updates
    epoch = 1 if cfg.checkpoint.reset_dataloader else epoch
    hours = extra.get("previous_training_time", 0) / 3600
    worse = (_noted(state, EARLY_STOPPING) or {}).get("num_runs", 0)
    done = ""
    if 0 < limits.max_update <= updates:
        done = f"{updates} updates done, and optimization.max_update is {limits.max_update}"
    elif 0 < limits.max_epoch < epoch:
        done = f"{epoch - 1} epochs done, and optimization.max_epoch is {limits.max_epoch}"
    elif 0 < limits.stop_time_hours < hours:
        done = f"{hours:.2f} h done, and optimization.stop_time_hours is {limits.stop_time_hours}"
    elif 0 < cfg.checkpoint.patience <= worse:
        done = f"{worse} validations without a better one (checkpoint.patience)"
    elif "active" in (state.get("model") or {}) and not len(state["model"]["active"]):
        done = "every head of the probe has stopped"
    if not done:
        return ""
    if file.parent == Path(cfg.checkpoint.save_dir):
        anew = "to train anew, give another hydra.run.dir"
        return f"{file.parent}: {done}. Nothing is left to do; {anew}"
    return f"{file}: {done}; to start anew with its weights, checkpoint.finetune_from_model={file}"


class RunFolderTask(FairseqTask):
    """A task whose checkpoints carry the identity of their `run`, which `setup_task` enters."""

    def __init__(self, cfg: Any):
        super().__init__(cfg)
        self.run = RunFolder()

    @property
    def finished(self) -> str:
        """Return why nothing is left to train, or empty; the training loop asks (`stopping`)."""
        return self.run.finished

    def state_dict(self) -> dict[str, Any]:
        """Return the task's state for checkpoints, with the run's identity."""
        return {**super().state_dict(), **self.run.state()}

    def max_positions(self) -> None:
        """Return None, no limit: crops and windows have the configured length."""

    @property
    def source_dictionary(self) -> None:
        """Return None: audio has no dictionary."""

    target_dictionary = source_dictionary
