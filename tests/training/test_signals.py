"""Signals: the update is finished and saved, and the same command continues."""

import itertools
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from fairseq.trainer import Trainer

from music_ssl_fairseq.training.interruption import RESUBMIT, Interruption, interruption
from tests.fairseq_commands import PACE, SHALLOW, logged, train

SIGNALS = [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2, signal.SIGHUP]


@pytest.fixture
def send(monkeypatch):
    """Make a method of the trainer send a signal to this process, in its nth call."""

    def prepare(method, call, number):
        original, calls = getattr(Trainer, method), []

        def sending(*args, **kwargs):
            calls.append(None)
            if len(calls) == call:
                os.kill(os.getpid(), number)
            return original(*args, **kwargs)

        monkeypatch.setattr(Trainer, method, sending)

    return prepare


SETTINGS = [
    *(*SHALLOW["music2vec"], "hydra.run.dir=run", "optimization.max_update=5"),
    "task.crops_per_track=1",
    *("checkpoint.save_interval_updates=2", "dataset.validate_interval_updates=3"),
]


def stopped(capsys):
    """Train until the signal: the line that says so, before the command to continue with."""
    with pytest.raises(SystemExit) as end:
        train("music2vec", *SETTINGS)
    assert end.value.code == RESUBMIT == 75
    lines = capsys.readouterr().err.strip().splitlines()
    assert sum("run the same command to continue" in line for line in lines) == 1
    assert lines[-1].startswith("fairseq-hydra-train --config-dir ")
    return lines[-2]


def saved_updates():
    state = torch.load("run/checkpoints/checkpoint_last.pt", weights_only=True)
    return state["optimizer_history"][-1]["num_updates"]


@pytest.fixture(scope="module")
def whole(corpus):
    """Return the log of a run that is never stopped: updates, and validations."""
    run = corpus / "whole"
    data = f"task.data={corpus / 'manifests'}"
    train("music2vec", *SETTINGS, data, f"hydra.run.dir={run}")
    return logged(run, "train_inner"), logged(run, "valid")


def check_continued(expected):
    """Both halves together have the numbers of the run that was never stopped."""
    train("music2vec", *SETTINGS)
    for kind, whole in zip(("train_inner", "valid"), expected, strict=True):
        steps = logged(Path("run"), kind)
        for key in whole[0].keys() - {"valid_wps", *PACE}:
            assert [s[key] for s in steps] == [s[key] for s in whole], (kind, key)


# Three updates an epoch. 3: before a validation, at the end of an epoch; 5: the last one.
@pytest.mark.parametrize(
    ("update", "number"),
    [(1, signal.SIGINT), (3, signal.SIGUSR1), (5, signal.SIGHUP)],
    ids=lambda value: getattr(value, "name", str(value)),
)
def test_an_update_is_finished_and_saved(here, whole, capsys, send, update, number):
    send("clip_grad_norm", update, number)
    if update == 5:  # the last one is finished with all that comes after it
        train("music2vec", *SETTINGS)
        assert logged(Path("run"), "valid")[-1]["valid_loss"] == whole[1][-1]["valid_loss"]
        return
    line = stopped(capsys)
    assert f"stopped by {number.name}: update {update} is saved in" in line
    assert "run/checkpoints/checkpoint_last.pt" in line
    assert saved_updates() == update
    check_continued(whole)


def test_a_validation_is_left_and_begun_again(here, whole, capsys, send):
    send("valid_step", 4, signal.SIGTERM)  # of the second validation, after the third update
    stopped(capsys)
    assert saved_updates() == 3
    check_continued(whole)


def test_before_the_first_update_there_is_nothing_to_finish(here, capsys, send):
    send("get_train_iterator", 1, signal.SIGTERM)
    assert "stopped by SIGTERM: before its first update" in stopped(capsys)
    assert not list(Path("run/checkpoints").glob("*.pt"))


def test_what_is_not_to_be_saved_is_not(here, capsys, send):
    send("clip_grad_norm", 1, signal.SIGTERM)
    with pytest.raises(SystemExit) as end:
        train("music2vec", *SETTINGS, "checkpoint.no_save=true")
    assert end.value.code == RESUBMIT
    assert "update 1 is the last, as checkpoint.no_save says" in capsys.readouterr().err
    assert not list(Path("run/checkpoints").glob("*.pt"))


@pytest.mark.parametrize("number", SIGNALS, ids=lambda number: number.name)
def test_each_signal_asks_for_an_end_of_the_update(number):
    inherited = signal.signal(number, signal.SIG_DFL)  # nohup lets SIGHUP be ignored
    interruption.install()
    try:
        interruption.training = True
        os.kill(os.getpid(), number)
        assert interruption.received is number
    finally:
        interruption.release()
        signal.signal(number, inherited)


def test_handlers_are_given_back():
    before = [signal.getsignal(number) for number in SIGNALS]
    interruption.install()
    assert signal.getsignal(signal.SIGUSR1) != before[2]
    interruption.release()
    assert [signal.getsignal(number) for number in SIGNALS] == before


WAITING = """
import time
from music_ssl_fairseq.training.interruption import interruption
interruption.install()
interruption.training = True
print("ready", flush=True)
while not interruption.received:
    time.sleep(0.01)
print("received", flush=True)
import hashlib
hashlib.pbkdf2_hmac("sha256", b"", b"", 40_000_000)  # Python runs no handler in there
print("finished", flush=True)
"""


def begin(code):
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "ready\n"
    return process


CONVOLVING = """
import math, os, time, torch
from music_ssl_fairseq.training import interruption as module
module._REPEAT_SECONDS = math.inf  # any number of signals counts as one
module.interruption.install()
module.interruption.training = True
convolution = torch.nn.Conv1d(64, 64, 128, padding=64, groups=8)
convolution(torch.randn(4, 64, 50)).sum().backward()
print("ready", flush=True)
end = time.monotonic() + 0.5
while time.monotonic() < end:
    convolution(torch.randn(4, 64, 50)).sum().backward()
os._exit(0)
"""


def test_signals_overwrite_no_memory():
    process = begin(CONVOLVING)
    while process.poll() is None:
        process.send_signal(signal.SIGUSR1)
        time.sleep(0.0005)
    assert (process.returncode, process.stderr.read()) == (0, "")


def test_one_signal_that_came_twice_is_one_on_a_busy_machine(monkeypatch):
    read, write = os.pipe()
    os.write(write, bytes([signal.SIGTERM, signal.SIGTERM]))
    os.close(write)
    monkeypatch.setattr(time, "monotonic", itertools.count().__next__)  # a second between two reads
    monkeypatch.setattr(os, "_exit", lambda status: pytest.fail("taken for a second signal"))
    Interruption()._exit_at_second_signal(read)


@pytest.mark.parametrize(("second", "seconds"), [(signal.SIGINT, 0.3), (signal.SIGTERM, 2.1)])
def test_a_second_signal_ends_at_once(second, seconds):
    process = begin(WAITING)
    process.send_signal(signal.SIGTERM)
    assert process.stdout.readline() == "received\n"
    time.sleep(seconds)
    start = time.monotonic()
    process.send_signal(second)
    output, errors = process.communicate(timeout=20)
    assert time.monotonic() - start < 1
    assert process.returncode == 128 + second
    assert (output, errors) == ("", "ended at once, by a second signal: nothing more is saved\n")


def test_whoever_has_saved_asks_for_another_run_however_it_ends():
    process = begin(WAITING.replace("import hashlib", "import hashlib; interruption.saved = True"))
    process.send_signal(signal.SIGUSR1)
    assert process.stdout.readline() == "received\n"
    time.sleep(0.3)
    process.send_signal(signal.SIGTERM)
    output, errors = process.communicate(timeout=20)
    assert (process.returncode, output, errors) == (RESUBMIT, "", "")


def test_one_signal_sent_twice_is_one():
    """GNU timeout sends its signal to the process, and to the group."""
    process = begin(WAITING.replace("40_000_000", "1000"))
    process.send_signal(signal.SIGTERM)
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=20)
    assert (process.returncode, output) == (0, "received\nfinished\n")


WORKER = """
import multiprocessing, os, signal, time
from music_ssl_fairseq.training.interruption import interruption
interruption.install()
interruption.training = True
process = multiprocessing.get_context("fork").Process(target=time.sleep, args=(30,), daemon=True)
process.start()
time.sleep(0.3)
print("ready", flush=True)
for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2, signal.SIGHUP):
    os.system(f"kill -{int(number)} {process.pid}")  # from a process that is not its parent
time.sleep(0.3)
print(process.is_alive(), flush=True)
process.terminate()
process.join(5)
print(process.is_alive(), flush=True)
"""


@pytest.mark.skipif(not hasattr(signal, "sigwaitinfo"), reason="no such call on this system")
def test_loading_processes_obey_their_parent_alone():
    output, errors = begin(WORKER).communicate(timeout=20)
    assert (output, errors) == ("True\nFalse\n", "")
