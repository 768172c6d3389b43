"""Patches of fairseq that save and load checkpoints through `checkpoints` and `background`."""

import copy
import functools
import logging
import os
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from fairseq import checkpoint_utils
from fairseq.distributed import utils as distributed_utils
from fairseq.file_io import PathManager
from fairseq.trainer import Trainer

from music_ssl_fairseq.compat import one_line_errors
from music_ssl_fairseq.errors import InputError
from music_ssl_fairseq.runtime.files import remove_temporary
from music_ssl_fairseq.training import checkpoints
from music_ssl_fairseq.training.background import writer

logger = logging.getLogger(__name__)

LAST = "checkpoint_last.pt"


class _Files(PathManager):
    """fairseq's PathManager, with copies that are atomic links, in the writer's order."""

    @staticmethod
    def copy(src_path: str, dst_path: str, overwrite: bool = False) -> bool:
        writer.submit(checkpoints.link, src_path, dst_path, path=dst_path)
        return True

    @staticmethod
    def ls(path: str) -> list[str]:
        pending = writer.pending(path)  # first: a file that is finished meanwhile is in both
        return sorted(pending.union(PathManager.ls(path)))

    @staticmethod
    def exists(path: str) -> bool:
        folder, name = os.path.split(path)
        return name in writer.pending(folder) or PathManager.exists(path)

    @staticmethod
    def rm(path: str) -> None:
        writer.submit(os.remove, path)


def patch_saving() -> None:
    """Let fairseq write checkpoints atomically, and resume from one that is whole."""
    save, load = checkpoint_utils.save_checkpoint, checkpoint_utils.load_checkpoint

    def write(state: Any, filename: str, async_write: bool = False) -> None:
        checkpoints.write_state(state, filename)

    # Wrapped with the name, because fairseq keeps the best score as the function's attribute.
    @functools.wraps(save)
    def save_checkpoint(*args: Any, **kwargs: Any) -> Any:
        with one_line_errors():
            return save(*args, **kwargs)

    @functools.wraps(load)
    def load_checkpoint(cfg: Any, trainer: Any, **kwargs: Any) -> Any:
        with one_line_errors():
            writer.wait()
            cfg = _with_whole_restore_file(cfg, trainer)
        extra_state, epochs = load(cfg, trainer, **kwargs)
        if not getattr(trainer.task, "finished", ""):
            # Read while fairseq goes through the validation set, and the GPU starts.
            shuffle = epochs.next_epoch_idx > trainer.cfg.dataset.curriculum
            epochs.begin(shuffle, trainer.cfg.distributed_training.fix_batches_to_gpus)
        return extra_state, epochs

    Trainer.save_checkpoint = functools.partialmethod(_save_state, Trainer.save_checkpoint)
    checkpoint_utils.torch_persistent_save = write
    checkpoint_utils.PathManager = _Files
    # With which fairseq removes old checkpoints: here after the new one is written.
    checkpoint_utils.os = SimpleNamespace(**{**vars(os), "remove": _Files.rm})
    checkpoint_utils.save_checkpoint = save_checkpoint
    checkpoint_utils.load_checkpoint = load_checkpoint


def _save_state(
    trainer: Any, save: Callable[..., Any], filename: str, extra_state: dict[str, Any]
) -> str | None:
    """Save as fairseq's trainer does, in the background. A second save waits for the first."""
    if not (writer.on and trainer.should_save_checkpoint_on_current_rank):
        return save(trainer, filename, extra_state)
    writer.wait()
    state, copied = writer.copies(trainer.state_dict())
    state["extra_state"].update(copy.deepcopy(extra_state))
    path = os.path.abspath(filename)
    writer.submit(_write, state, copied, path, path=path)
    return path


def _write(state: Any, copied: Any, path: str) -> None:
    begin = time.monotonic()
    if copied is not None:
        copied.synchronize()
    checkpoints.write_state(state, path)
    logger.info("%s is on the disk after %.1f s", path, time.monotonic() - begin)


def prepare_saving(trainer: Any) -> None:
    """Make the writer's buffers while the first updates are computed, and kernels compiled."""
    saves = trainer.should_save_checkpoint_on_current_rank and not trainer.cfg.checkpoint.no_save
    sharded = trainer.is_fsdp or trainer.cfg.distributed_training.zero_sharding != "none"
    if writer.on and saves and not (writer.prepared or sharded):
        writer.prepared = True
        trainer.consolidate_optimizer()  # as before each save; if not sharded, by itself
        writer.submit(writer.copies.prepare, writer.copies.layouts(trainer.state_dict()))


def finish_saving() -> None:
    """Wait for checkpoints that are being written; an error ends the run in one line."""
    with one_line_errors():
        writer.wait()


def resume_file(cfg: Any, suffix: str) -> Path:
    """Return the file from which training resumes, by fairseq's rules."""
    if cfg.restore_file == LAST:
        return Path(cfg.save_dir, LAST.replace(".pt", f"{suffix}.pt"))
    return Path(cfg.restore_file.replace(".pt", f"{suffix}.pt"))


def _with_whole_restore_file(cfg: Any, trainer: Any) -> Any:
    """Return `cfg.checkpoint`, with another `restore_file` if its own is damaged."""
    expected = resume_file(cfg, trainer.checkpoint_suffix)
    found = _find_in_all_processes(trainer, Path(cfg.save_dir), expected)
    if found is None or found == expected:
        return cfg
    cfg = copy.deepcopy(cfg)
    cfg.restore_file = str(found).replace(f"{trainer.checkpoint_suffix}.pt", ".pt")
    cfg.finetune_from_model = None
    return cfg


def _find_in_all_processes(trainer: Any, folder: Path, expected: Path) -> Path | None:
    """Return in all processes what the first finds in the folder, or raise its InputError."""
    found: tuple[str | None, str | None] = (None, None)  # of types that others read safely
    if trainer.data_parallel_rank == 0:
        try:
            remove_temporary(folder)  # of killed processes
            suffix = trainer.checkpoint_suffix
            whole = checkpoints.checkpoint_to_resume(folder, expected, suffix)
            found = str(whole) if whole else None, None
        except InputError as error:
            found = None, error.lines
    if trainer.data_parallel_world_size > 1:
        found = distributed_utils.broadcast_object(
            found, src_rank=0, group=trainer.data_parallel_process_group, dist_device=trainer.device
        )
    path, message = found
    if message:
        raise InputError(*message.split("\n"))
    return Path(path) if path else None
