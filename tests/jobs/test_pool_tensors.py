"""Tensors of worker processes, which arrive in shared memory."""

import multiprocessing
import time

import torch

from music_ssl_fairseq.jobs.pool import WorkerPool, ordered
from music_ssl_fairseq.jobs.read_ahead import ReadAhead


def in_shared_memory(item: int) -> torch.Tensor:
    return torch.full((100_000,), item)


def test_tensors_of_forked_workers_arrive_in_a_thread():
    """As extraction for a GPU has it: a thread takes them from the workers."""
    read = ordered(in_shared_memory, range(20), WorkerPool(2, fork=True))
    with ReadAhead(torch.Tensor.clone, read, threads=1, depth=2) as ahead:
        assert [int(tensor[-1]) for tensor in ahead] == list(range(20))
    with ReadAhead(
        torch.Tensor.clone, ordered(in_shared_memory, range(9_999), WorkerPool(2, fork=True)), 1, 2
    ) as ahead:
        assert int(ahead.take(1)[0][0]) == 0
    deadline = time.monotonic() + 10
    while multiprocessing.active_children() and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not multiprocessing.active_children()
