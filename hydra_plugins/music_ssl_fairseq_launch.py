"""Start and end the processes of a `fairseq-hydra-train` together.

fairseq starts them before it imports a `user_dir`, so this is a callback of hydra, which the
configurations in `examples/` name. hydra loads this file in every program of the environment, so it
imports nothing of the package.
"""

import functools
import importlib.util
import math
import os
import shlex
import signal
import sys
from datetime import timedelta
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.core.utils import JobStatus
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import OmegaConf

from hydra_plugins._music_ssl_fairseq_command import with_settings
from hydra_plugins._music_ssl_fairseq_console import replay
from hydra_plugins._music_ssl_fairseq_refusals import (
    end_failed,
    refuse_gpu_settings,
    refuse_run_folder,
)

_THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
_MAX_NARROW_WIDTH = 128
"""Values per frame of `tiny` models (96), and of those that a second thread slows down as well."""
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2, signal.SIGHUP)


class Launch(Callback):
    """Limit threads and the wait for other processes; pass signals on to those of the machine."""

    def __init__(self, rendezvous_seconds: float = 120):
        """Limit the wait until all processes have started; fairseq waits for half an hour."""
        self._seconds = rendezvous_seconds

    def on_run_start(self, config: Any, **kwargs: Any) -> None:
        refuse_run_folder(config.hydra.run.dir)

    def on_job_end(self, config: Any, job_return: Any, **kwargs: Any) -> None:
        if job_return.status == JobStatus.FAILED and HydraConfig.get().mode == RunMode.RUN:
            end_failed(job_return._return_value)

    def on_job_start(self, config: Any, **kwargs: Any) -> None:
        """Patch fairseq, once, and log what came before the run had a log."""
        replay()
        import torch
        from fairseq.distributed import utils

        _refuse_without_iopath(config)
        if not torch.cuda.is_available():
            refuse_gpu_settings(config)
        on_gpu = torch.cuda.is_available() and not OmegaConf.select(config, "common.cpu")
        width = OmegaConf.select(config, "model.encoder_embed_dim")
        if on_gpu or (width or math.inf) <= _MAX_NARROW_WIDTH:
            _one_thread()
        if not isinstance(utils.distributed_init, functools.partial):
            spawn = torch.multiprocessing.spawn
            utils.distributed_init = functools.partial(
                _distributed_init, utils.distributed_init, self._seconds
            )
            utils.infer_init_method = functools.partial(_infer_init_method, utils.infer_init_method)
            torch.multiprocessing.spawn = functools.partial(_spawn, spawn)


def _one_thread() -> None:
    """Compute with one CPU thread per process, in this one and in those that it starts.

    Training on GPUs leaves little to the CPU. With as many threads as there are CPUs, the threads
    of eight processes hold each other up (fairseq issue 3342). So do those of a narrow model on a
    CPU and its loading processes. Settings of the user stay.
    """
    import torch

    if not any(name in os.environ for name in _THREADS):
        os.environ.update(dict.fromkeys(_THREADS, "1"))
        torch.set_num_threads(1)


def _refuse_without_iopath(config: Any) -> None:
    """Refuse a setting for which fairseq would end without training, with exit status 0."""
    asked = OmegaConf.select(config, "checkpoint.write_checkpoints_asynchronously")
    if asked and importlib.util.find_spec("iopath") is None:
        sys.exit(
            "error: checkpoint.write_checkpoints_asynchronously needs the package iopath; leave it "
            "out, because task.background_saves does what it does"
        )


def _distributed_init(original: Any, seconds: float, cfg: Any) -> int:
    """Call fairseq's distributed_init with a limited wait, and one line at its end."""
    from torch import distributed

    settings = cfg.distributed_training
    init = distributed.init_process_group
    distributed.init_process_group = functools.partial(_init_process_group, init, seconds)
    try:
        return original(cfg)
    except (distributed.DistError, RuntimeError) as error:
        sys.exit(
            f"error: process {settings.distributed_rank} of {settings.distributed_world_size}: not "
            f"all came to {settings.distributed_init_method} within {seconds:g} s "
            f"({str(error).splitlines()[0][:200]}). See what the others say; for a slow start, "
            "hydra.callbacks.launch.rendezvous_seconds=600"
        )
    finally:
        distributed.init_process_group = init


def _init_process_group(init: Any, seconds: float, *args: Any, **kwargs: Any) -> None:
    """Call torch's init_process_group with its own timeout, and restore the usual one."""
    from torch.distributed import distributed_c10d as c10d

    init(*args, **kwargs, timeout=timedelta(seconds=seconds))
    usual = c10d._get_default_timeout(kwargs["backend"])
    c10d._set_pg_timeout(usual)
    c10d._get_default_store().set_timeout(usual)


def _infer_init_method(original: Any, cfg: Any, *args: Any, **kwargs: Any) -> None:
    """Call fairseq's infer_init_method, also for torchrun with one GPU per node, and without GPUs.

    If the world size is 1, fairseq ignores torchrun's WORLD_SIZE. So set it from the environment
    first. Without GPUs, fairseq would still choose a GPU, divide by the number of GPUs, start as
    many processes, and use NCCL, which needs GPUs.
    """
    import torch

    if all(name in os.environ for name in ("MASTER_ADDR", "MASTER_PORT", "WORLD_SIZE", "RANK")):
        cfg.distributed_world_size = int(os.environ["WORLD_SIZE"])
    choose, count = torch.cuda.set_device, torch.cuda.device_count
    if not torch.cuda.is_available():
        torch.cuda.set_device, torch.cuda.device_count = (lambda device: None), (lambda: 1)
    try:
        original(cfg, *args, **kwargs)
        if not torch.cuda.is_available() and cfg.distributed_init_method:
            cfg.distributed_no_spawn, cfg.distributed_backend = True, "gloo"
    except AssertionError as error:
        tasks = os.environ.get("SLURM_NTASKS")
        world = "distributed_training.distributed_world_size"
        slurm = f"Slurm runs {tasks} tasks on {os.environ.get('SLURM_NNODES')} nodes, and "
        sys.exit(
            f"error: {slurm if tasks else ''}distributed_training.distributed_world_size is "
            f"{cfg.distributed_world_size} ({error}): one process per GPU, or with Slurm as many "
            "tasks as processes: srun --nodes=N --ntasks-per-node=M with a world size of N x M"
            + ("" if tasks else f"\n{shlex.join(with_settings(f'{world}={count() or 1}'))}")
        )
    finally:
        torch.cuda.set_device, torch.cuda.device_count = choose, count


def _spawn(original: Any, fn: Any, args: Any = (), nprocs: int = 1, **kwargs: Any) -> None:
    """Call torch's spawn; pass signals on to the processes, and take over their exit status."""
    from torch.multiprocessing import ProcessExitedException

    context = original(fn, args=args, nprocs=nprocs, **{**kwargs, "join": False})

    def pass_on(number: int, frame: Any) -> None:
        for process in context.processes:
            if process.is_alive():
                os.kill(process.pid, number)

    for number in _SIGNALS:
        if number == signal.SIGINT or signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, pass_on)
    try:
        while not context.join():
            pass
    except ProcessExitedException as error:
        sys.exit(error.exit_code if error.exit_code > 0 else 128 - error.exit_code)
