"""Kernels that are compiled ahead, with a stand-in for Triton's functions."""

import contextlib
import threading

import pytest
import torch

pytest.importorskip("triton")

from music_ssl_fairseq.fast.kernels import launch


class Function:
    """Records how it is compiled and launched; compiling waits for `go`."""

    def __init__(self):
        self.calls, self.go, self.run = [], threading.Event(), True

    def warmup(self, *args, grid, **options):
        assert self.go.wait(20)
        name = threading.current_thread().name
        self.calls.append(("compiled", name.startswith("compile_ahead"), args, options))
        return self

    def __getitem__(self, grid):
        return lambda *args, **options: self.calls.append(("launched", grid, args, options))


@pytest.fixture(autouse=True)
def no_gpu(monkeypatch):
    monkeypatch.setattr(launch, "_ahead", launch._Ahead())
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 3)
    monkeypatch.setattr(torch.cuda, "device", lambda number: contextlib.nullcontext())


def test_a_launch_waits_for_its_kernel_alone():
    """It does not compile a second time what other threads compile."""
    first, other = Function(), Function()
    kernel, unused = launch.Kernel(first), launch.Kernel(other)
    x = torch.zeros(4)
    with launch.compile_ahead():
        kernel[(2,)](x, 32, WIDTH=8)
        kernel[(5,)](torch.ones(9), 64, WIDTH=8)  # the same kernel: dtype, multiples of 16, WIDTH
        unused[(2,)](x, 32, WIDTH=8)
    assert first.calls == []
    threading.Timer(0.1, first.go.set).start()
    kernel[(7,)](x, 48, WIDTH=8)
    compiled, launched = first.calls
    assert compiled == ("compiled", True, (torch.float32, 32), {"WIDTH": 8})  # keeps no memory
    assert launched == ("launched", (7,), (x, 48), {"WIDTH": 8})
    assert other.calls == []
    other.go.set()


@pytest.mark.parametrize("args", [(1, 8), (33, 8), (32, 16)])
def test_other_arguments_are_other_kernels(args):
    function = Function()
    function.go.set()
    kernel = launch.Kernel(function)
    number, width = args
    with launch.compile_ahead():
        kernel[(1,)](torch.zeros(2), 32, WIDTH=8)
        kernel[(1,)](torch.zeros(2), number, WIDTH=width)
        assert len(launch._ahead.jobs) == 2


def test_what_fails_ahead_fails_when_launched():
    """Not before: the kernel may never be needed."""

    class Broken(Function):
        def warmup(self, *args, grid, **options):
            raise RuntimeError("no such instruction")

        def __getitem__(self, grid):
            def run(*args, **options):
                raise RuntimeError("no such instruction")

            return run

    kernel = launch.Kernel(Broken())
    with launch.compile_ahead():
        kernel[(1,)](3)
    with pytest.raises(RuntimeError, match="no such instruction"):
        kernel[(1,)](3)
    assert launch._ahead.jobs == {}
