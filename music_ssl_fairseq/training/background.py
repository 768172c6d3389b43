"""Writing in the background: training continues while its last checkpoint goes to the disk.

The state is copied first, so that training may change it. One thread then does all
work on the disk, in order: write, link, remove.
"""

import atexit
import copy
import os
import sys
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor


class HostCopies:
    """Copies of a state's tensors on the CPU. Those of GPU tensors reuse pinned memory.

    A file of the copies has the contents of fairseq's own file. Tensors of a GPU are copied one by
    one, half precision becomes fp32, and tensors of the CPU that share memory still share it.
    """

    def __init__(self) -> None:
        self._buffers: list[Tensor] = []
        self._used = 0

    def __call__(self, state: Any) -> tuple[Any, torch.cuda.Event | None]:
        """Copy a state; the copies of the last call are overwritten.

        Returns the copies, and the event after which they are complete: None if they are complete
        already. A GPU copies between two updates, so that the caller need not wait.
        """
        from fairseq.utils import apply_to_sample

        self._used = 0
        ours: dict[int, Any] = {}  # for deepcopy: what has been copied already

        def to_host(tensor: Tensor) -> Tensor:
            if _is_half(tensor):
                tensor = tensor.float()
            if self._is_elsewhere(tensor):
                tensor = self._from_device(tensor)
                ours[id(tensor)] = tensor
            return tensor

        found = copy.deepcopy(apply_to_sample(to_host, state), ours)
        if not (self._used and torch.cuda.is_available()):
            return found, None
        event = torch.cuda.Event()
        event.record()
        return found, event

    def layouts(self, state: Any) -> list[Tensor]:
        """Return the shapes and types of the buffers that a state needs, as tensors of no data."""
        from fairseq.utils import apply_to_sample

        found: list[Tensor] = []

        def note(tensor: Tensor) -> Tensor:
            if self._is_elsewhere(tensor):
                empty = torch.empty_like(tensor, device="meta")
                found.append(empty.float() if _is_half(tensor) else empty)
            return tensor

        apply_to_sample(note, state)
        return found

    def prepare(self, layouts: list[Tensor]) -> None:
        """Make the buffers ahead: for a gigabyte of page-locked memory that takes half a second."""
        self._buffers = [_pinned_like(layout) for layout in layouts]

    def _is_elsewhere(self, tensor: Tensor) -> bool:
        return tensor.device.type != "cpu"

    def _from_device(self, tensor: Tensor) -> Tensor:
        """Begin to copy a tensor into the next buffer."""
        number, self._used = self._used, self._used + 1
        if number == len(self._buffers):
            self._buffers.append(_pinned_like(tensor))
        buffer = self._buffers[number]
        layout = buffer.shape, buffer.dtype, buffer.stride()
        if layout != (tensor.shape, tensor.dtype, tensor.stride()):
            buffer = self._buffers[number] = _pinned_like(tensor)
        return buffer.copy_(tensor, non_blocking=True)


def _is_half(tensor: Tensor) -> bool:
    return tensor.dtype in (torch.bfloat16, torch.float16)


def _pinned_like(tensor: Tensor) -> Tensor:
    try:
        return torch.empty_like(tensor, device="cpu", pin_memory=torch.cuda.is_available())
    except RuntimeError:  # no more memory may be page-locked
        return torch.empty_like(tensor, device="cpu")


class Writer:
    """Runs tasks that write files, in order: in one thread, or at once if `on` is False."""

    def __init__(self) -> None:
        self.on = False  # whether to work in the background
        self.copies = HostCopies()  # what is being written
        self.prepared = False  # whether its buffers have been made
        self._begin()
        os.register_at_fork(after_in_child=self._begin)  # where the thread does not exist

    def _begin(self) -> None:
        self._executor: ThreadPoolExecutor | None = None
        self._futures: list[Future[None]] = []
        self._pending: list[str] = []
        self._error: BaseException | None = None

    def submit(self, task: Callable[..., Any], *args: Any, path: str = "") -> None:
        """Queue a task that writes the file `path`.

        Tasks run in order. After an error, the remaining tasks are skipped.
        """
        if not self.on:
            task(*args)
            return
        if self._executor is None:
            self._executor = ThreadPoolExecutor(1, "checkpoints")
            atexit.register(self._say_error)
        path = os.path.abspath(path)
        self._pending.append(path)
        self._futures.append(self._executor.submit(self._run, task, args, path))

    def _run(self, task: Callable[..., Any], args: tuple, path: str) -> None:
        try:
            if self._error is None:
                task(*args)
        except BaseException as error:  # for the main thread
            self._error = error
        finally:
            self._pending.remove(path)

    def pending(self, folder: str) -> set[str]:
        """Return the names of files in a folder that are still to be written."""
        paths = [os.path.split(path) for path in list(self._pending)]
        return {name for parent, name in paths if parent == os.path.abspath(folder)}

    def check(self) -> None:
        """Raise the error of a task, once."""
        error, self._error = self._error, None
        if error is not None:
            self._futures = []
            raise error

    def wait(self) -> None:
        """Wait until all files are written, and raise the error of a task."""
        for future in self._futures:
            future.result()
        self._futures = []
        self.check()

    def _say_error(self) -> None:
        """Print the error of a task, as the program ends for another reason."""
        if self._error is not None:
            print(f"error: {self._error}", file=sys.stderr, flush=True)


writer = Writer()
"""The thread of this process."""
