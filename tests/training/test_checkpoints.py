"""Checkpoints: whole or not there, whatever happens while they are written."""

import errno
import os
import resource
import shutil
from pathlib import Path

import pytest
import torch

from music_ssl_fairseq.errors import InputError
from music_ssl_fairseq.training import checkpoints
from tests.fairseq_commands import SHALLOW, logged, make_corpus, train
from tests.full_disk import full_disk


def state(updates: int) -> dict:
    generator = torch.Generator().manual_seed(updates)
    return {
        "model": {"weight": torch.randn(30_000, generator=generator)},
        "optimizer_history": [{"num_updates": updates}],
        "extra_state": {"train_iterator": {"epoch": 1}},
    }


def updates_in(path: Path) -> int:
    loaded = torch.load(path, weights_only=True)
    expected = state(loaded["optimizer_history"][0]["num_updates"])
    assert torch.equal(loaded["model"]["weight"], expected["model"]["weight"])
    return loaded["optimizer_history"][0]["num_updates"]


@pytest.fixture(autouse=True)
def at_once(monkeypatch):
    monkeypatch.setattr(checkpoints.time, "sleep", lambda seconds: None)


def test_a_full_disk_is_one_line_and_leaves_what_was_there(tmp_path):
    path = tmp_path / "checkpoint_last.pt"
    checkpoints.write_state(state(1), path)
    said = pytest.raises(InputError, match=r"checkpoint_last\.pt: File too large; .*to continue$")
    with full_disk(50_000), said:
        checkpoints.write_state(state(2), path)
    assert updates_in(path) == 1
    assert os.listdir(tmp_path) == [path.name]


def test_a_disk_that_was_full_for_a_moment_leaves_no_trace(tmp_path, monkeypatch):
    path = tmp_path / "checkpoint_last.pt"
    checkpoints.write_state(state(2), tmp_path / "expected.pt")
    limit = resource.RLIMIT_FSIZE
    largest = resource.getrlimit(limit)[1]
    monkeypatch.setattr(
        checkpoints.time, "sleep", lambda seconds: resource.setrlimit(limit, (largest, largest))
    )
    with full_disk(50_000):
        checkpoints.write_state(state(2), path)
    assert updates_in(path) == 2
    assert path.stat().st_size == (tmp_path / "expected.pt").stat().st_size


def test_what_does_not_read_back_does_not_replace_what_was_there(tmp_path, monkeypatch):
    path = tmp_path / "checkpoint_last.pt"
    checkpoints.write_state(state(1), path)

    def save_badly(obj, file):
        save(obj, file)
        file.seek(40_000)
        file.write(b"?")

    save = torch.save
    monkeypatch.setattr(torch, "save", save_badly)
    with pytest.raises(InputError, match="does not read back"):
        checkpoints.write_state(state(2), path)
    assert updates_in(path) == 1
    assert os.listdir(tmp_path) == [path.name]


def test_errors_that_are_no_disk_s_pass_as_they_are(tmp_path):
    with pytest.raises((AttributeError, TypeError, RuntimeError), match=r"lambda|pickle"):
        checkpoints.write_state({"f": lambda: 0}, tmp_path / "checkpoint_last.pt")
    assert not os.listdir(tmp_path)


@pytest.mark.parametrize("share", [0.0, 0.3, 0.9, 0.999])
def test_a_cut_file_is_damaged(tmp_path, share):
    path = tmp_path / "x.pt"
    checkpoints.write_state(state(1), path)
    assert checkpoints.damage(path) is None
    os.truncate(path, int(share * path.stat().st_size))
    assert checkpoints.damage(path)


@pytest.mark.parametrize("place", [0.1, 0.5, 0.9, 0.998])
def test_a_file_with_other_bytes_is_damaged(tmp_path, place):
    path = tmp_path / "x.pt"
    checkpoints.write_state(state(1), path)
    content = bytearray(path.read_bytes())
    at = int(place * len(content))
    content[at : at + 64] = bytes(byte ^ 0x55 for byte in content[at : at + 64])
    path.write_bytes(content)
    assert checkpoints.damage(path)


@pytest.mark.parametrize("links", [True, False])
def test_a_second_name_is_atomic(tmp_path, links, monkeypatch):
    source, path = tmp_path / "checkpoint_1_5.pt", tmp_path / "checkpoint_last.pt"
    checkpoints.write_state(state(1), path)
    checkpoints.write_state(state(5), source)
    if not links:
        monkeypatch.setattr(os, "link", lambda *names: os.stat(tmp_path / "no links here"))
    checkpoints.link(source, path)
    checkpoints.link(source, path)
    assert source.samefile(path) == links
    assert updates_in(path) == 5
    checkpoints.write_state(state(6), source)
    assert updates_in(path) == 5
    assert len(os.listdir(tmp_path)) == 2


def test_a_copy_that_fails_leaves_what_was_there(tmp_path, monkeypatch):
    source, path = tmp_path / "checkpoint_1_5.pt", tmp_path / "checkpoint_last.pt"
    checkpoints.write_state(state(1), path)
    checkpoints.write_state(state(5), source)

    def fail(*names):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "link", fail)
    monkeypatch.setattr(shutil, "copyfile", fail)
    with pytest.raises(InputError, match=r"last\.pt: No space left .*checkpoint_1_5\.pt is whole"):
        checkpoints.link(source, path)
    assert updates_in(path) == 1
    assert len(os.listdir(tmp_path)) == 2


def _cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def test_the_newest_whole_checkpoint_is_taken(tmp_path, caplog):
    for name, updates in {"1_5": 5, "1_10": 10, "best": 9, "last": 10}.items():
        checkpoints.write_state(state(updates), tmp_path / f"checkpoint_{name}.pt")
    torch.save({"model": {}, "optimizer_history": [{"num_updates": 99}]}, tmp_path / "crash.pt")
    last = tmp_path / "checkpoint_last.pt"

    def found():
        return checkpoints.checkpoint_to_resume(tmp_path, last, "")

    assert found() == last
    assert not caplog.records
    _cut(last)
    assert found() == tmp_path / "checkpoint_1_10.pt"
    assert f"{last}: it ends early" in caplog.text
    assert f"continuing from {tmp_path}/checkpoint_1_10.pt" in caplog.text
    _cut(tmp_path / "checkpoint_1_10.pt")
    last.unlink()
    assert found() == tmp_path / "checkpoint_best.pt"
    for path in tmp_path.glob("checkpoint*"):
        _cut(path) if path.name != "checkpoint_best.pt" else path.write_bytes(b"")
    with pytest.raises(InputError, match=r"no other checkpoint .* is whole") as error:
        found()
    assert "\n" not in str(error.value)


def test_no_checkpoint_yet(tmp_path):
    assert checkpoints.checkpoint_to_resume(tmp_path, tmp_path / "checkpoint_last.pt", "") is None


def test_a_checkpoint_of_another_folder_must_be_there(tmp_path):
    with pytest.raises(InputError, match=r"typo\.pt: no such checkpoint"):
        checkpoints.checkpoint_to_resume(tmp_path / "run", tmp_path / "typo.pt", "")


def test_a_run_whose_last_checkpoint_is_cut_goes_on_as_if_nothing_had_happened(
    tmp_path, monkeypatch
):
    monkeypatch.chdir(make_corpus(tmp_path))
    settings = [
        *(*SHALLOW["music2vec"], "hydra.run.dir=run", "optimization.max_update=5"),
        *("checkpoint.save_interval_updates=2", "dataset.validate_interval_updates=2"),
    ]
    train("music2vec", *settings)
    folder = Path("run/checkpoints")
    names = sorted(path.name for path in folder.glob("*.pt"))
    assert names == ["checkpoint_1_4.pt", "checkpoint_best.pt", "checkpoint_last.pt"]
    whole = logged(Path("run"), "train_inner")
    weights = torch.load(folder / "checkpoint_last.pt", weights_only=True)["model"]
    assert not any(folder.joinpath(n).is_symlink() for n in os.listdir(folder))
    _cut(folder / "checkpoint_last.pt")
    (folder / ".0123456789abcdef.99.tmp.pt").touch()
    Path("run/hydra_train.log").unlink()
    train("music2vec", *settings)
    log = Path("run/hydra_train.log").read_text()
    assert "continuing from" in log
    assert "checkpoint_1_4.pt, which is whole (4 updates)" in log
    assert [step["loss"] for step in logged(Path("run"), "train_inner")] == [whole[4]["loss"]]
    again = torch.load(folder / "checkpoint_last.pt", weights_only=True)["model"]
    assert all(torch.equal(again[n], w) for n, w in weights.items() if torch.is_tensor(w))
    assert not [name for name in os.listdir(folder) if name.startswith(".")]
