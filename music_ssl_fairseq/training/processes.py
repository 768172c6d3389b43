"""Processes that train together, and their loading processes."""

import functools
import multiprocessing
import sys
from typing import Any

import torch
from torch import Tensor


def is_distributed() -> bool:
    """Tell whether this process trains together with others."""
    return torch.distributed.is_available() and torch.distributed.is_initialized()


def stop_loading(iterators: dict[Any, Any]) -> None:
    """Stop the workers of the iterators in a task's `dataset_to_epoch_iter`, and wait for them."""
    for iterator in iterators.values():
        if hasattr(iterator, "stop"):  # reads ahead
            iterator.stop()
        loader = getattr(iterator, "dataloader", None)
        stop = getattr(getattr(loader, "_iterator", None), "_shutdown_workers", None)
        if stop is not None:
            stop()


def fork_workers() -> None:
    """Let data loaders fork their workers where fairseq has spawned one process per GPU.

    Spawned workers would start one after the other, import everything and receive the dataset: a
    minute before the first batch. With one GPU they are forked as well.
    """
    if sys.platform == "linux" and multiprocessing.get_start_method() == "spawn":
        multiprocessing.set_start_method("fork", force=True)


@functools.cache
def exchange_numbers_on_cpu() -> None:
    """Let fairseq's trainer exchange numbers between processes without synchronising the GPU.

    fairseq sends the sample size, the counts and the gradient norm of each update through the GPU
    and reads them, which synchronises it. Tensors on the CPU are exchanged there instead, if the
    process group can: `distributed_training.distributed_backend: cpu:gloo,cuda:nccl`. With `nccl`
    alone nothing changes.
    """
    from fairseq.distributed import utils
    from fairseq.trainer import Trainer

    reduce_all, check_norms = utils.all_reduce_dict, Trainer._check_grad_norms

    def all_reduce_dict(data: dict[str, Any], device: torch.device, group: Any) -> dict[str, Any]:
        if not _exchanges_on_cpu(group):
            return reduce_all(data, device, group)
        on_device = {
            k: v for k, v in data.items() if isinstance(v, Tensor) and v.device.type == device.type
        }
        on_cpu = {k: v for k, v in data.items() if k not in on_device}
        sums = reduce_all(on_device, device, group)
        sums = {**sums, **reduce_all(on_cpu, torch.device("cpu"), group)}
        # In the order of `data`; what was a number is one again.
        return {k: sums[k] if isinstance(v, Tensor) else sums[k].item() for k, v in data.items()}

    def check_grad_norms(self: Any, grad_norm: Tensor) -> None:
        alone = self._grad_norm_buf is None
        if not (alone or grad_norm.is_cuda) and _exchanges_on_cpu(self.data_parallel_process_group):
            self._grad_norm_buf = self._grad_norm_buf.cpu()
        check_norms(self, grad_norm)

    utils.all_reduce_dict = all_reduce_dict
    Trainer._check_grad_norms = check_grad_norms


def _exchanges_on_cpu(group: Any) -> bool:
    return "cpu:" in str(torch.distributed.get_backend_config(group))
