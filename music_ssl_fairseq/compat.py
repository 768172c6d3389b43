"""Adapt to versions of fairseq, torch and torchaudio, and make their refusals one line.

Importing this file imports fairseq without its changes to logging, lets torch's safe unpickler load
fairseq checkpoints, and lets fairseq refuse other files in one line. It changes nothing else.
"""

import argparse
import collections
import contextlib
import functools
import logging
import os
import re
import sys
import warnings
from collections.abc import Iterator
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from music_ssl_fairseq.errors import InputError, one_line
from music_ssl_fairseq.runtime.unpickling import check_form, one_line_refusals
from music_ssl_fairseq.runtime.user_command import (
    corrected,
    with_command,
    with_option,
    with_setting,
)


@contextlib.contextmanager
def _logging_as_it_was() -> Iterator[None]:
    """Undo changes to logging by imports within this block, and hide warnings about them.

    On import, fairseq's text-to-speech tasks call `logging.basicConfig`, which prints the logs of
    all libraries, and ask for tensorboardX. Its `torch.jit.script` is deprecated in torch 2.13.
    """
    root, asking = logging.getLogger(), logging.getLogger("fairseq.tasks.text_to_speech")
    handler = logging.NullHandler()
    level = asking.level
    root.addHandler(handler)  # with a handler, basicConfig does nothing
    asking.setLevel(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", category=FutureWarning)
            yield
    finally:
        asking.setLevel(level)
        root.removeHandler(handler)


_MIN_TORCH = (2, 10)
"""Earlier, `weights_only` had holes (CVE-2025-32434, CVE-2026-24747)."""

_MAX_TORCHAUDIO = (2, 11)
"""The last version of torchaudio, whose models work with every later torch."""


def _minor(distribution: str) -> tuple[int, int]:
    first, second = version(distribution).split(".")[:2]
    return int(first), int(second)


def torchaudio_models() -> ModuleType:
    """Import torchaudio's models, which are plain torch, beside any torch that they run on.

    torchaudio refuses a torch that was built for another minor version of CUDA, as all from 2.15 on
    are. That concerns its kernels, which no model uses.

    Raises InputError if it cannot be imported, with the command that repairs it.
    """
    cuda, torch.version.cuda = torch.version.cuda, None  # the check passes over torch without CUDA
    try:
        return import_module("torchaudio.models")
    except (ImportError, OSError, RuntimeError) as error:
        wanted = min(_minor("torch"), _MAX_TORCHAUDIO)
        raise InputError(
            f"torchaudio cannot be imported beside torch {version('torch')} ({error}): "
            f'run `pip install "torchaudio=={wanted[0]}.{wanted[1]}.*"`'
        ) from None
    finally:
        torch.version.cuda = cuda


def check_unpickler() -> None:
    """Refuse a torch in which opening a checkpoint can run code."""
    if _minor("torch") < _MIN_TORCH:
        raise InputError(
            f"torch {version('torch')} lets a checkpoint run code as it is opened (CVE-2025-32434, "
            'CVE-2026-24747): run `pip install "torch>=2.10"`'
        )


def patch_checkpoint_reading() -> None:
    """Let fairseq refuse a checkpoint in one line; torch would recommend weights_only=False.

    This affects resuming, `checkpoint.restore_file`, `checkpoint.finetune_from_model` and
    fairseq-validate.
    """
    from fairseq import checkpoint_utils

    load, load_all = (
        checkpoint_utils.load_checkpoint_to_cpu,
        checkpoint_utils.load_model_ensemble_and_task,
    )

    @functools.wraps(load_all)
    def load_model_ensemble_and_task(files: list[str], *args: Any, **kwargs: Any) -> Any:
        missing = [file for file in files if not (kwargs.get("suffix") or os.path.exists(file))]
        with one_line_errors():
            for file in missing[:1]:
                raise InputError(f"{file}: no such file", corrected(file))
            try:
                return load_all(files, *args, **kwargs)
            except RuntimeError as error:
                if _command() not in _COMMANDS or "loading state_dict" not in str(error):
                    raise
                raise InputError(
                    f"{files[0]}: does not fit the labels and settings of this command: "
                    f"{_tensors_that_differ(error)}"
                ) from None

    checkpoint_utils.load_model_ensemble_and_task = load_model_ensemble_and_task

    @functools.wraps(load)
    def load_checkpoint_to_cpu(path: str, *args: Any, **kwargs: Any) -> dict[str, Any]:
        with one_line_errors():
            check_unpickler()
            check_form(Path(path))
            with one_line_refusals(Path(path)):
                state = load(path, *args, **kwargs)
            if "model" not in state or (state.get("cfg") or state.get("args")) is None:
                raise InputError(f"{path}: not a fairseq checkpoint: no `model`, or no settings")
            return state

    checkpoint_utils.load_checkpoint_to_cpu = load_checkpoint_to_cpu


def allow_fairseq_checkpoints() -> None:
    """Let `torch.load` with `weights_only` read the plain data of fairseq checkpoints.

    From torch 2.6 on, fairseq loads so, and torch refuses classes that it does not know. These hold
    settings and dictionaries and run no code when unpickled; all others are still refused.
    """
    from fairseq.data.dictionary import Dictionary
    from fairseq.distributed.utils import _TensorPlaceholder  # for states that processes exchange
    from omegaconf.base import ContainerMetadata, Metadata
    from omegaconf.dictconfig import DictConfig
    from omegaconf.listconfig import ListConfig
    from omegaconf.nodes import AnyNode

    torch.serialization.add_safe_globals(
        [
            *(Dictionary, _TensorPlaceholder, argparse.Namespace, Any, dict, list, int),
            *(collections.defaultdict, collections.OrderedDict),
            *(ContainerMetadata, Metadata, DictConfig, ListConfig, AnyNode),
        ]
    )


_MAX_CHARACTERS = 400  # characters of torch's list of tensors

_COMMANDS = ("fairseq-hydra-train", "hydra_train", "fairseq-validate", "validate")

# torch puts a traceback before the message, in which an InputError writes line ends as \n.
_IN_LOADING = re.compile(
    r"in DataLoader worker process.*(?:\n|\\n)[\w.]*\.(?:Input|Audio)Error: ", re.DOTALL
)
_KILLED_LOADING = re.compile(r"DataLoader worker \(pid")


def is_training_command() -> bool:
    """Tell whether this process is fairseq-hydra-train, or one that it has spawned."""
    return _command() in _COMMANDS[:2]


def _command() -> str:
    return os.path.basename(sys.argv[0]).removesuffix(".py")


@contextlib.contextmanager
def one_line_errors() -> Iterator[None]:
    """Print an InputError as one line and exit, under fairseq-hydra-train and fairseq-validate.

    Errors from data-loading processes, which torch wraps, are unwrapped. In other programs the
    exception passes, for callers to catch.
    """
    from hydra.core.hydra_config import HydraConfig

    try:
        yield
    except (InputError, RuntimeError) as error:
        of_loading = _message_of_loading(error)
        message = of_loading or (error.lines if isinstance(error, InputError) else "")
        if not message:
            raise
        if HydraConfig.initialized() or _command() in _COMMANDS:
            sys.exit(f"error: {with_command(message)}")
        if not of_loading:
            raise
        raise InputError(of_loading) from error


def _message_of_loading(error: Exception) -> str | None:
    """Return the message about an error in a data-loading process; None for other errors."""
    message = str(error)
    if found := _IN_LOADING.search(message):
        text = message[found.end() :].removesuffix("\\n").strip()
        return re.sub(r": `([^`]+)`$", r"\n\1", text)  # the command has a line of its own
    if _KILLED_LOADING.match(message):
        cause = str(error.__cause__ or error).splitlines()[0].rstrip(" .")
        return f"{cause}; if memory was short: fewer dataset.num_workers"
    return None


@functools.cache
def patch_resuming() -> None:
    """Let fairseq's trainer refuse a checkpoint of another model or optimizer in one line.

    fairseq drops torch's message about the tensors that differ, and asserts what else must fit.
    """
    from fairseq.optim.lr_scheduler import FairseqLRScheduler
    from fairseq.trainer import Trainer

    load = Trainer.load_checkpoint

    def take_best(self: Any, state: dict[str, Any]) -> None:
        self.best = state.get("best")  # fixed has none, and another may follow it

    def load_checkpoint(self: Any, filename: str, *args: Any, **kwargs: Any) -> Any:
        with one_line_errors():
            try:
                return load(self, filename, *args, **kwargs)
            except InputError:
                raise
            except AssertionError as error:
                if "Optimizer does not match" not in str(error):
                    raise InputError(f"{filename}: {error}") from None
                raise InputError(
                    f"{filename}: is of another optimizer ({str(error).rpartition('. ')[2]}); "
                    "without its state the schedule begins anew",
                    with_setting("checkpoint.reset_optimizer=true"),
                ) from None
            except Exception as error:
                cause = error.__context__
                if cause is None or not str(error).startswith("Cannot load model parameters"):
                    raise
                raise InputError(
                    f"{filename}: does not fit the model of these settings: "
                    f"{_tensors_that_differ(cause)}. Give its own "
                    "settings (the `cfg` of a file of its run). Or start from its encoder",
                    with_setting(
                        "checkpoint.restore_file=",
                        "checkpoint.finetune_from_model=",
                        f"model.init_from={filename}",
                    ),
                ) from None

    FairseqLRScheduler.load_state_dict = take_best
    Trainer.load_checkpoint = load_checkpoint


def _tensors_that_differ(error: BaseException) -> str:
    """Return the first two that torch names."""
    reason = [line.strip(" \t.") for line in str(error).splitlines() if line.strip()]
    return one_line("; ".join(reason[1:3] or reason), _MAX_CHARACTERS)


def patch_validation(command: Any) -> None:
    """Let the module `fairseq_cli.validate` ask for --batch-size in two lines, not assert it."""
    validate = command.main

    @functools.wraps(validate)
    def main(cfg: Any, *args: Any, **kwargs: Any) -> Any:
        if cfg.dataset.max_tokens is None and cfg.dataset.batch_size is None:
            sys.exit(f"error: --batch-size is missing\n{with_option('--batch-size', 8)}")
        return validate(cfg, *args, **kwargs)

    command.main = main


with _logging_as_it_was():
    Dictionary = import_module("fairseq.data").Dictionary
    """fairseq's, of units."""
    allow_fairseq_checkpoints()
    patch_checkpoint_reading()
if (_validate := sys.modules.get("fairseq_cli.validate")) is not None:
    patch_validation(_validate)
