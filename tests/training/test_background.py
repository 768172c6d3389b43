"""Checkpoints that are written while training continues."""

import multiprocessing
import threading
import time
from pathlib import Path

import pytest
import torch
from fairseq.utils import move_to_cpu

from music_ssl_fairseq.errors import InputError
from music_ssl_fairseq.training import checkpoints
from music_ssl_fairseq.training.background import HostCopies, Writer
from tests.fairseq_commands import SHALLOW, logged, train


def state(value: float = 1.0) -> dict:
    """What checkpoints hold: layouts, half precision, tensors that share memory, plain values."""
    flat = torch.full((60,), value)
    weight = flat[:24].view(2, 3, 4)
    half = torch.full((3, 5), value, dtype=torch.bfloat16)
    channels_last = torch.full((2, 3, 4, 5), value).to(memory_format=torch.channels_last)
    return {
        "model": {"weight": weight, "tied": weight, "part": flat[30:40], "half": half},
        "optimizer": {"state": {0: {"step": 3, "exp_avg": channels_last.transpose(0, 1)}}},
        "extra_state": {"metrics": [(0, "loss", {"val": value})], "empty": []},
    }


class OfDevice(HostCopies):
    """Takes each tensor as one of a GPU."""

    def _is_elsewhere(self, tensor):
        return True


def test_a_file_of_the_copies_is_the_file_of_the_state(tmp_path):
    expected, found = tmp_path / "expected.pt", tmp_path / "found.pt"
    checkpoints.write_state(move_to_cpu(state()), expected)
    original = state()
    copied, event = HostCopies()(original)
    original["model"]["part"].zero_()
    original["extra_state"]["metrics"].clear()
    checkpoints.write_state(copied, found)
    assert event is None
    assert found.read_bytes() == expected.read_bytes()


def test_buffers_are_used_again_and_hold_what_a_gpu_s_tensors_would_give(tmp_path):
    one_by_one = move_to_cpu(state(2.0))  # as they come from a GPU: nothing is shared
    one_by_one["model"] = {name: t.clone() for name, t in one_by_one["model"].items()}
    moments = one_by_one["optimizer"]["state"][0]
    moments["exp_avg"] = moments["exp_avg"].clone()
    checkpoints.write_state(one_by_one, tmp_path / "expected.pt")
    copies = OfDevice()
    first, _ = copies(state(1.0))
    second, _ = copies(state(2.0))
    assert second["model"]["weight"].data_ptr() == first["model"]["weight"].data_ptr()
    checkpoints.write_state(second, tmp_path / "found.pt")
    assert (tmp_path / "found.pt").read_bytes() == (tmp_path / "expected.pt").read_bytes()
    third, _ = copies({"model": {"weight": torch.ones(7)}})  # another layout
    assert third["model"]["weight"].tolist() == [1.0] * 7


def test_buffers_made_ahead_are_those_that_are_used():
    copies = OfDevice()
    layouts = copies.layouts(state())
    assert [t.dtype for t in layouts] == [torch.float32] * 5
    copies.prepare(layouts)
    made = [buffer.data_ptr() for buffer in copies._buffers]
    copied, _ = copies(state())
    assert [buffer.data_ptr() for buffer in copies._buffers] == made
    assert copied["optimizer"]["state"][0]["exp_avg"].stride() == (1, 60, 15, 3)
    assert not HostCopies().layouts(state())


def test_work_is_done_in_order_and_its_files_are_known_before(tmp_path):
    work, gate = Writer(), threading.Event()
    work.on = True
    done = []
    work.submit(lambda: gate.wait(10) and done.append("written"), path=str(tmp_path / "a.pt"))
    work.submit(done.append, "linked", path=str(tmp_path / "b.pt"))
    assert work.pending(str(tmp_path)) == {"a.pt", "b.pt"}
    assert not done
    gate.set()
    work.wait()
    assert done == ["written", "linked"]
    assert not work.pending(str(tmp_path))


def test_a_fork_has_a_thread_of_its_own(tmp_path):
    work = Writer()
    work.on = True
    work.submit((tmp_path / "one").touch)
    work.wait()

    def child() -> None:
        work.submit((tmp_path / "two").touch)
        work.wait()

    process = multiprocessing.get_context("fork").Process(target=child)
    process.start()
    process.join(10)
    process.kill()
    assert process.exitcode == 0
    assert (tmp_path / "two").exists()


def test_after_an_error_nothing_is_removed_and_it_is_raised_once():
    work, done = Writer(), []
    work.on = True

    def fail():
        raise InputError("no room")

    work.submit(fail)
    work.submit(done.append, "removed the checkpoint before")
    with pytest.raises(InputError, match="no room"):
        work.wait()
    work.wait()
    work.check()
    assert not done


SETTINGS = [
    *(*SHALLOW["music2vec"], "hydra.run.dir=run", "optimization.max_update=6"),
    "checkpoint.keep_best_checkpoints=1",
    *("checkpoint.save_interval_updates=2", "dataset.validate_interval_updates=3"),
]


def test_training_goes_on_while_a_checkpoint_is_written(here, monkeypatch):
    write, updates = checkpoints.write_state, []

    def write_late(state, path):
        """Wait until another update is logged, as nothing but a training that goes on can do."""
        until = time.monotonic() + 20
        while len(logged(Path("run"), "train_inner")) <= 2 and not updates:
            assert time.monotonic() < until
            time.sleep(0.01)
        updates.append(state["optimizer_history"][-1]["num_updates"])
        write(state, path)

    monkeypatch.setattr(checkpoints, "write_state", write_late)
    train("music2vec", *SETTINGS)
    assert updates == [2, 4, 6]
    names = sorted(path.name for path in Path("run/checkpoints").iterdir())
    assert names[0].startswith("checkpoint.best_loss_")
    assert names[1:] == ["checkpoint_1_6.pt", "checkpoint_best.pt", "checkpoint_last.pt"]


@pytest.mark.parametrize("save", [1, 3])
def test_a_disk_that_fails_ends_the_run_in_one_line(here, monkeypatch, save):
    write, saves = checkpoints.write_state, []

    def fail(state, path):
        saves.append(path)
        if len(saves) == save:
            raise InputError(f"{path}: No space left on device")
        write(state, path)

    monkeypatch.setattr(checkpoints, "write_state", fail)
    with pytest.raises(SystemExit, match=r"^error: .*pt: No space left on device\nls "):
        train("music2vec", *SETTINGS)
    assert len(saves) == save
    left = {path.name for path in Path("run/checkpoints").iterdir()}
    assert {"checkpoint_1_4.pt", "checkpoint_last.pt"} <= left if save == 3 else not left
