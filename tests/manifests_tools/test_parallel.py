"""Work in several processes: order, errors, and how it ends when it is stopped."""

import os
import signal
import subprocess
import sys
import time
from multiprocessing import active_children

import pytest

from manifests_tools.examine import parallel_map
from music_ssl_fairseq.errors import AudioError, InputError
from tests import ROOT


def slow_square(number: int) -> int:
    time.sleep(0.002 * (number % 3))
    return number * number


def refuse_seven(number: int) -> int:
    if number == 7:
        raise AudioError("seven.wav", "is seven")
    return number


def crash_at_seven(number: int) -> int:
    if number == 7:
        os.kill(os.getpid(), signal.SIGKILL)
    return number


@pytest.mark.parametrize("workers", [1, 2, 5])
@pytest.mark.parametrize("number", [0, 1, 3, 200])
def test_results_come_in_the_order_of_the_items(workers, number):
    squares = list(parallel_map(slow_square, range(number), workers, "squaring"))
    assert squares == [i * i for i in range(number)]


@pytest.mark.parametrize("workers", [1, 2])
def test_what_the_function_raises_is_raised_here(workers):
    with pytest.raises(AudioError, match=r"seven\.wav: is seven") as caught:
        list(parallel_map(refuse_seven, range(20), workers, "counting"))
    assert (caught.value.path, caught.value.reason) == ("seven.wav", "is seven")


def test_a_killed_worker_is_one_line_and_no_endless_wait():
    with pytest.raises(InputError, match="a worker process was killed"):
        list(parallel_map(crash_at_seven, range(20), 2, "counting"))


def fail_or_refuse_to_leave(number):
    if number == 0:
        raise ValueError("no")
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    time.sleep(3600)


def test_workers_that_do_not_leave_are_killed(monkeypatch):
    monkeypatch.setattr("music_ssl_fairseq.jobs.pool._SECONDS_TO_LEAVE", 0.5)
    with pytest.raises(ValueError, match="no"):
        list(parallel_map(fail_or_refuse_to_leave, range(2), 2, "waiting", chunk=1))
    assert not active_children()


def test_a_caller_that_stops_early_leaves_no_worker():
    results = parallel_map(slow_square, range(10_000), 2, "squaring")
    assert next(results) == 0
    assert len(active_children()) == 2
    results.close()
    assert active_children() == []


SLEEPERS = """
import signal, sys, time
from pathlib import Path
from manifests_tools.__main__ import main
from manifests_tools import pretrain
from manifests_tools.examine import parallel_map
from music_ssl_fairseq.runtime.files import atomic_path

# Jobs that a shell runs in the background ignore Ctrl-C, and so would this.
signal.signal(signal.SIGINT, signal.default_int_handler)

def hold(name):
    with atomic_path(name) as temporary:
        temporary.touch()
        time.sleep(600)

def run(arguments):
    list(parallel_map(hold, [f"{sys.argv[1]}/{i}" for i in range(9)], 2, "holding"))

pretrain.run = run
sys.exit(main(["pretrain", "--root", "x"]))
"""


@pytest.mark.parametrize(
    ("signum", "to_group"),
    [
        (signal.SIGINT, True),
        (signal.SIGINT, False),
        (signal.SIGTERM, False),
        (signal.SIGKILL, False),
    ],
)
def test_stopping_the_command_ends_the_workers_and_removes_what_they_write(
    tmp_path, signum, to_group
):
    # No `__main__` guard in that program, on purpose.
    process = subprocess.Popen(
        [sys.executable, "-c", SLEEPERS, str(tmp_path)],
        cwd=ROOT,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    wait_until(lambda: len(list(tmp_path.iterdir())) == 2)
    if to_group:  # as Ctrl-C does
        os.killpg(process.pid, signum)
    else:
        process.send_signal(signum)
    _, errors = process.communicate(timeout=20)
    wait_until(lambda: not list(tmp_path.iterdir()))
    if signum != signal.SIGKILL:
        assert process.returncode == 130
        assert errors.splitlines()[-2] == "interrupted; to begin again, run"
        assert "Traceback" not in errors
    wait_until(lambda: not group_exists(process.pid))


def wait_until(condition) -> None:
    for _ in range(400):
        if condition():
            return
        time.sleep(0.05)
    raise AssertionError("waited for 20 s in vain")


def group_exists(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True
