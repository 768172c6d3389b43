"""Find the checkpoint that a name stands for: a file, a folder, a run, or a model on the hub."""

import os
from pathlib import Path

from music_ssl_fairseq.errors import InputError
from music_ssl_fairseq.runtime import hub
from music_ssl_fairseq.runtime.user_command import look_around, with_path

CONFIG = "config.json"
"""The file that makes a folder one of Hugging Face's."""

_CHECKPOINTS = ("checkpoint_best.pt", "checkpoint_last.pt")
_FOLDER = "checkpoints"
_MAX_RUNS = 6


def locate(path: str | os.PathLike) -> Path:
    """Return the checkpoint file, or the Hugging Face folder, that a path stands for.

    The folder of a run, or one that has a single run in it, stands for the run's best checkpoint
    (the last, if it was never validated). `hf:USER/NAME`, also with `@REVISION`, is fetched from
    the Hugging Face hub.

    Raises InputError if a folder has neither, or several runs, or the hub no safetensors.
    """
    if hub.is_name(path):
        folder = hub.snapshot(path)
        if not (folder / CONFIG).is_file() or not any(folder.glob("*.safetensors")):
            raise InputError(
                f"{os.fspath(path)}: no {CONFIG} and safetensors in it; nothing else is loaded "
                "from the hub"
            )
        return folder
    path = Path(path)
    if not path.is_dir() or (path / CONFIG).is_file():
        return path
    for folder in (path / _FOLDER, path):
        if found := _checkpoint_in(folder):
            return found
    depths = ("*", "*/*", "*/*/*")  # as in runs/MODEL/CONFIG
    folders = sorted(f for depth in depths for f in path.glob(f"{depth}/{_FOLDER}"))
    runs = [folder.parent for folder in folders if _checkpoint_in(folder)]
    if len(runs) > 1:
        shown = ", ".join(map(str, runs[:_MAX_RUNS])) + (", ..." if len(runs) > _MAX_RUNS else "")
        error = InputError(
            f"{path}: holds several runs: {shown}; give one of them", with_path(path, str(runs[0]))
        )
        error.add_note(f"music_ssl_fairseq.load({str(runs[0])!r})")
        raise error
    if not runs:
        raise InputError(
            f"{path}: neither a Hugging Face model (no {CONFIG} in it) nor the folder of a run (no "
            f"{_FOLDER}/{_CHECKPOINTS[0]})",
            look_around(path / "any"),
        )
    return _checkpoint_in(runs[0] / _FOLDER) or path


def _checkpoint_in(folder: Path) -> Path | None:
    files = (folder / name for name in _CHECKPOINTS)
    return next((file for file in files if file.is_file()), None)
