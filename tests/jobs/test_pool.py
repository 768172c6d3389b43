import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Iterator

import numpy as np
import pytest

from music_ssl_fairseq.errors import AudioError, InputError
from music_ssl_fairseq.jobs.pool import WorkerPool, ordered


def slow_first(item: int) -> tuple[int, str | None]:
    time.sleep(0.3 if item == 0 else 0)
    return item, os.environ.get("OMP_NUM_THREADS")


def fails_at_five(item: int) -> int:
    if item == 5:
        raise AudioError("five.wav", "is bad")
    return item


def first_is_quick(item: int) -> int:
    time.sleep(60 if item else 0)
    return item


def killed(item: int) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def test_results_in_order_from_workers_of_one_thread(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    results = list(ordered(slow_first, range(100), WorkerPool(2)))
    assert results == [(i, "1") for i in range(100)]
    assert os.environ["OMP_NUM_THREADS"] == "3"


def test_results_before_an_error_arrive():
    results = []
    with pytest.raises(AudioError, match=r"five\.wav: is bad"):
        results.extend(ordered(fails_at_five, iter(range(200)), WorkerPool(2)))
    assert results == [0, 1, 2, 3, 4]


def test_a_killed_worker_is_an_error_and_no_wait_for_ever():
    with pytest.raises(InputError, match="worker process was killed"):
        list(ordered(killed, range(3), WorkerPool(1)))


def test_stopping_early_does_not_wait_for_what_is_being_done():
    start = time.monotonic()
    results = ordered(first_is_quick, range(40), WorkerPool(2))
    assert next(results) == 0
    results.close()
    assert time.monotonic() - start < 30
    assert not multiprocessing.active_children()


class Where:
    """A job that says where it runs."""

    device = "nowhere"

    def on(self, device: str) -> "Where":
        self.device = device
        return self

    def __call__(self, item: int) -> str:
        return self.device

    def stream(self, items: Iterator[int]) -> Iterator[str]:
        return map(self, items)


class Numbers:
    """A job that takes three items before it gives a result, and wants some to be none."""

    def on(self, device: str) -> "Numbers":
        return self

    def stream(self, items: Iterator[int]) -> Iterator[int]:
        held: list[int] = []
        for item in items:
            if item < 0:
                raise AudioError("negative.wav", "is bad")
            if item == 1000:
                os.kill(os.getpid(), signal.SIGKILL)
            held.append(item)
            time.sleep(0.002 * (item % 3))
            if len(held) > 2:
                yield held.pop(0) ** 2
        yield from (item**2 for item in held)


def test_a_process_for_each_gpu():
    devices = ("cuda:0", "cuda:1")
    found = list(ordered(Where(), range(30), WorkerPool(2, devices)))
    assert set(found) <= set(devices)
    assert list(ordered(Where(), range(2), WorkerPool(1))) == ["nowhere"] * 2
    assert WorkerPool(2, devices).group_size > WorkerPool(2).group_size == 1


@pytest.mark.parametrize("number", [0, 2, 150])
def test_workers_of_gpus_are_given_items_ahead_and_answer_in_order(number):
    found = ordered(Numbers(), iter(range(number)), WorkerPool(2, ("cuda:0", "cuda:1")))
    assert list(found) == [i**2 for i in range(number)]


def test_what_a_worker_of_a_gpu_raises_arrives():
    results = []
    with pytest.raises(AudioError, match=r"negative\.wav: is bad"):
        results.extend(ordered(Numbers(), iter([*range(20), -1]), WorkerPool(1, ("cuda:0",))))
    assert results == [i**2 for i in range(18)]


def test_a_killed_worker_of_a_gpu_is_an_error():
    with pytest.raises(InputError, match="worker process was killed"):
        list(ordered(Numbers(), iter([1, 1000]), WorkerPool(1, ("cuda:0",))))


class Refuses:
    """A job whose worker cannot begin."""

    def on(self, device: str) -> "Refuses":
        raise AudioError(device, "is no device")

    def stream(self, items: Iterator[int]) -> Iterator[int]:
        yield from items


@pytest.mark.parametrize("number", [1, 9])
def test_a_worker_that_cannot_begin_is_its_own_error(number):
    with pytest.raises(AudioError, match="is no device"):
        list(ordered(Refuses(), range(number), WorkerPool(2, ("cuda:0", "cuda:1"))))


def large(item: int) -> np.ndarray:
    return np.full(3_000_000, item, np.float32)


def half_of_a_result(item: int) -> np.ndarray:
    if item == 3:
        # The parent has taken a part of it when the process ends.
        threading.Timer(0.02, os.kill, (os.getpid(), signal.SIGKILL)).start()
        return np.zeros(200_000_000, np.float32)
    return large(item)


def test_results_larger_than_a_pipe_holds():
    found = list(ordered(large, range(8), WorkerPool(2)))
    assert [int(array[-1]) for array in found] == list(range(8))


def test_a_worker_killed_in_the_middle_of_a_result_is_an_error():
    with pytest.raises(InputError, match="worker process was killed"):
        for _ in ordered(half_of_a_result, range(8), WorkerPool(2)):
            pass


def test_a_signal_right_after_the_fork_does_not_escape_from_the_worker(tmp_path):
    """The worker sees a SIGTERM before it runs, and the program has a handler that raises."""
    parent, early = os.getpid(), [True]

    def interrupt(*_):
        raise KeyboardInterrupt

    def in_the_child():
        if early:
            os.kill(os.getpid(), signal.SIGTERM)

    before = signal.signal(signal.SIGTERM, interrupt)
    os.register_at_fork(after_in_child=in_the_child)
    try:
        with pytest.raises(InputError, match="a worker process was killed"):
            list(ordered(fails_at_five, iter(range(2)), WorkerPool(1, fork=True)))
    except BaseException:
        if os.getpid() != parent:
            (tmp_path / "escaped").touch()
            os._exit(3)
        raise
    finally:
        early.clear()
        signal.signal(signal.SIGTERM, before)
    assert not (tmp_path / "escaped").exists()
