"""Threads that stay ahead: order, errors, slow items, and an early end."""

import queue
import threading
import time

import pytest

from music_ssl_fairseq.jobs.read_ahead import ReadAhead


def slow_square(number: int) -> int:
    if number == 7:
        raise ValueError("seven")
    time.sleep(0.002 * (number % 3))
    return number * number


@pytest.mark.parametrize("number", [0, 1, 5])
def test_results_come_in_the_order_of_the_items(number):
    with ReadAhead(slow_square, range(number), threads=3, depth=2) as ahead:
        assert list(ahead) == [i * i for i in range(number)]
        assert ahead.take(3) == []


def test_what_the_function_raises_comes_after_all_earlier_results():
    with ReadAhead(slow_square, range(20), threads=2, depth=20) as ahead:
        results = []
        with pytest.raises(ValueError, match="seven"):  # noqa: PT012 (results before it count)
            while taken := ahead.take(20):
                results += taken
        assert results == [i * i for i in range(7)]


def test_results_do_not_wait_for_a_slow_item():
    items: queue.SimpleQueue[int | None] = queue.SimpleQueue()
    with ReadAhead(slow_square, iter(items.get, None), threads=1, depth=8) as ahead:
        items.put(2)
        assert ahead.take(5) == [4]
        items.put(3)
        items.put(None)
        assert list(ahead) == [9]


def test_items_are_taken_no_further_ahead_than_the_depth_and_closed_at_the_end():
    taken, closed = [], threading.Event()

    def items():
        try:
            for number in range(6):
                taken.append(number)
                yield number
        finally:
            closed.set()

    with ReadAhead(slow_square, items(), threads=2, depth=2) as ahead:
        assert ahead.take(1) == [0]
        time.sleep(0.05)
        assert len(taken) <= 4
    assert closed.wait(5)
