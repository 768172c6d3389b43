"""Launch Triton kernels, or compile them ahead in other threads.

Triton compiles a kernel when it is first launched, in half a second or more. A training step needs
some twenty, one after the other, and torch.compile as long in Python. Most of Triton's compiler is
not Python, so that other threads can run it meanwhile.
"""

import contextlib
import functools
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from music_ssl_fairseq.runtime.machine import available_cpus

_MAX_THREADS = 16


class _Ahead:
    """The mode of all threads - launch, or compile ahead - and the unfinished jobs."""

    def __init__(self) -> None:
        self.active = False
        self.jobs: dict[tuple[Any, ...], Future] = {}

    @functools.cached_property
    def pool(self) -> ThreadPoolExecutor:
        return ThreadPoolExecutor(min(_MAX_THREADS, available_cpus()), "compile_ahead")


_ahead = _Ahead()


@contextlib.contextmanager
def compile_ahead() -> Iterator[None]:
    """Compile the kernels that are launched within, in other threads, and do not run them."""
    _ahead.active = True
    try:
        yield
    finally:
        _ahead.active = False


class Kernel:
    """A Triton kernel: `kernel[grid](...)` launches it, or within `compile_ahead` compiles it."""

    def __init__(self, function: Any):
        self._function = function

    def __getitem__(self, grid: Any) -> Callable[..., None]:
        return functools.partial(self._compile if _ahead.active else self._launch, grid)

    def _launch(self, grid: Any, *args: Any, **options: Any) -> None:
        if _ahead.jobs:
            job = _ahead.jobs.get(self._key(args, options))
            if job is not None:
                job.exception()  # waits; what failed there fails below
            _ahead.jobs = {key: job for key, job in _ahead.jobs.items() if not job.done()}
        self._function[grid](*args, **options)

    def _compile(self, grid: Any, *args: Any, **options: Any) -> None:
        key = self._key(args, options)
        if key not in _ahead.jobs:
            arguments = [_without_memory(argument) for argument in args]
            device = torch.cuda.current_device()
            job = _ahead.pool.submit(_compile, self._function, device, arguments, options)
            _ahead.jobs[key] = job

    def _key(self, args: tuple[Any, ...], options: dict[str, Any]) -> tuple[Any, ...]:
        return (self, *map(_kind, args), *options.items())


def _kind(argument: Any) -> Any:
    """Return the property of an argument for which Triton compiles a kernel."""
    if isinstance(argument, Tensor):
        return argument.dtype
    if isinstance(argument, int):
        return argument == 1, argument % 16 == 0
    return type(argument)


def _without_memory(argument: Any) -> Any:
    """Return an argument for which Triton compiles the same, and which keeps no memory."""
    if isinstance(argument, Tensor):
        return argument.dtype
    if isinstance(argument, TensorDescriptor):
        base, shape, strides = argument.base.new_empty(1), argument.shape, argument.strides
        return TensorDescriptor(base, shape, strides, argument.block_shape)
    return argument


def _compile(function: Any, device: int, args: list[Any], options: dict[str, Any]) -> None:
    """Compile a kernel, and load it to a device."""
    with torch.cuda.device(device):
        # Reading `run` makes the launcher, which some versions of Triton compile too.
        assert function.warmup(*args, grid=(1,), **options).run
