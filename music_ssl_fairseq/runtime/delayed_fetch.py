"""Copies from the GPU that do not stop it."""

from typing import NamedTuple

import torch
from torch import Tensor


class Fetch(NamedTuple):
    """A tensor on its way to the CPU."""

    values: Tensor  # on the CPU, complete only after `wait`
    # When it is complete; None if the tensor was on the CPU already
    arrived: torch.cuda.Event | None

    def wait(self) -> Tensor:
        if self.arrived is not None:
            self.arrived.synchronize()
        return self.values


def start_fetch(values: Tensor) -> Fetch:
    """Start to copy a tensor to the CPU, in page-locked memory; return at once."""
    if not values.is_cuda:
        return Fetch(values, None)
    copy = torch.empty(values.shape, dtype=values.dtype, pin_memory=True)
    copy.copy_(values.detach(), non_blocking=True)
    arrived = torch.cuda.Event()
    arrived.record()
    return Fetch(copy, arrived)


class DelayedFetch:
    """Return the values of the previous call, so that the CPU never synchronises with the GPU.

    Python queues kernels long before they run. Reading a value waits for all kernels before it, and
    the GPU then waits for Python. A training loop that reads the values of the previous update
    waits for neither.
    """

    def __init__(self) -> None:
        self._pending: Fetch | None = None

    def __call__(self, values: Tensor) -> Tensor:
        """Take a tensor of any shape.

        Returns the tensor of the previous call, on the CPU; at the first call, and for a tensor
        that is on the CPU already, the tensor itself.
        """
        if not values.is_cuda:
            return values
        current = start_fetch(values)
        previous = self._pending or current
        self._pending = current
        return previous.wait()
