"""Patches of fairseq that save and load checkpoints through `checkpoints`."""

import copy
import functools
from pathlib import Path
from typing import Any

from fairseq import checkpoint_utils
from fairseq.distributed import utils as distributed_utils
from fairseq.file_io import PathManager

from music_ssl_fairseq.compat import one_line_errors
from music_ssl_fairseq.errors import InputError
from music_ssl_fairseq.training import checkpoints

LAST = "checkpoint_last.pt"


class _LinkingPathManager(PathManager):
    """fairseq's PathManager, with copies of checkpoints that are atomic links."""

    @staticmethod
    def copy(src_path: str, dst_path: str, overwrite: bool = False) -> bool:
        checkpoints.link(src_path, dst_path)
        return True


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
            cfg = _with_whole_restore_file(cfg, trainer)
        return load(cfg, trainer, **kwargs)

    checkpoint_utils.torch_persistent_save = write
    checkpoint_utils.PathManager = _LinkingPathManager
    checkpoint_utils.save_checkpoint = save_checkpoint
    checkpoint_utils.load_checkpoint = load_checkpoint


def resume_file(cfg: Any, suffix: str) -> Path:
    """Return the file from which training resumes, by fairseq's rules."""
    if cfg.restore_file == LAST:
        return Path(cfg.save_dir, LAST.replace(".pt", f"{suffix}.pt"))
    return Path(cfg.restore_file.replace(".pt", f"{suffix}.pt"))


def _with_whole_restore_file(cfg: Any, trainer: Any) -> Any:
    """Return `cfg.checkpoint`, with another `restore_file` if its own is damaged."""
    expected = resume_file(cfg, trainer.checkpoint_suffix)
    found = _agreed(trainer, Path(cfg.save_dir), expected)
    if found is None or found == expected:
        return cfg
    cfg = copy.deepcopy(cfg)
    cfg.restore_file = str(found).replace(f"{trainer.checkpoint_suffix}.pt", ".pt")
    cfg.finetune_from_model = None
    return cfg


def _agreed(trainer: Any, folder: Path, expected: Path) -> Path | None:
    """Return in all processes what the first finds in the folder, or raise its InputError."""
    found: tuple[Path | None, str | None] = (None, None)
    if trainer.data_parallel_rank == 0:
        try:
            checkpoints.remove_leftovers(folder)
            suffix = trainer.checkpoint_suffix
            found = checkpoints.checkpoint_to_resume(folder, expected, suffix), None
        except InputError as error:
            found = None, str(error)
    if trainer.data_parallel_world_size > 1:
        found = distributed_utils.broadcast_object(
            found, src_rank=0, group=trainer.data_parallel_process_group, dist_device=trainer.device
        )
    path, message = found
    if message:
        raise InputError(message)
    return path
