"""Bad numbers and broken inputs during training: one line that names the tracks or the file."""

import logging
import os
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile
import torch
from fairseq.logging import progress_bar

from music_ssl_fairseq import audio
from music_ssl_fairseq.compat import one_line_errors
from music_ssl_fairseq.data.label_store import LabelStore, memmap_files
from music_ssl_fairseq.data.manifest import Manifest
from music_ssl_fairseq.errors import AudioError, InputError
from music_ssl_fairseq.training.logs import patch_logs
from tests.fairseq_commands import SHALLOW, make_corpus, train
from tests.full_disk import full_disk


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A working folder whose audio is its own, so that a test may damage it."""
    monkeypatch.chdir(make_corpus(tmp_path))
    return tmp_path


def _make_huge(folder: Path) -> str:
    """Give a track samples that no recording has."""
    name = Path("manifests/train.tsv").read_text().splitlines()[2].split("\t")[0]
    file = folder / "music" / name
    samples = np.full(70_000, 3e38, np.float32)
    samples[::2] *= -1
    with file.open("wb") as handle:
        soundfile.write(handle, samples, 16_000, format="WAV", subtype="FLOAT")
    return str(file)


def test_absurd_audio_is_named_and_replaced(here):
    file = _make_huge(here)
    train(
        "music2vec", *SHALLOW["music2vec"], "optimization.max_update=8", "task.max_unreadable=0.5"
    )
    log = Path("runs/music2vec/config/hydra_train.log").read_text()
    assert f"{file}: holds samples as large as 3e+38" in log


@pytest.mark.parametrize("family", ["music_hubert", "music2vec"])
def test_the_tracks_of_a_batch_that_is_not_finite_are_named(here, monkeypatch, family):
    file = _make_huge(here)
    monkeypatch.setattr(audio.waveforms, "MAX_SAMPLE", np.inf)
    with pytest.raises(SystemExit) as end:
        train(family, *SHALLOW[family], "optimization.max_update=9", "task.normalize=false")
    message = str(end.value)
    assert "\n" not in message
    assert "not finite in the batch of" in message
    assert f"{file} (up to 3e+38)" in message
    assert not list(Path("runs").rglob("crash.pt"))


class _Broken(torch.utils.data.Dataset):
    def __init__(self, error):
        self.error = error

    def __len__(self):
        return 1

    def __getitem__(self, index):
        raise self.error


def says_of(loader) -> str:
    """The error that comes of loading."""
    batches = iter(loader)
    with pytest.raises(InputError) as found, one_line_errors():
        next(batches)
    batches._shutdown_workers()  # the error keeps them: the next process would wait for them
    return str(found.value)


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (AudioError("a.wav", "no such file"), "a.wav: no such file"),
        (InputError("12 of 20 tracks cannot be read"), "12 of 20 tracks cannot be read"),
    ],
)
def test_an_error_of_a_loading_process_is_as_it_was(error, says):
    loader = torch.utils.data.DataLoader(_Broken(error), num_workers=1)
    assert says_of(loader) == says


class _Killed(_Broken):
    def __getitem__(self, index):
        os.kill(os.getpid(), 9)


def test_a_killed_loading_process_is_one_line():
    loader = torch.utils.data.DataLoader(_Killed(None), num_workers=1)
    message = says_of(loader)
    assert "killed by signal: Killed; if memory was short: fewer" in message
    assert "\n" not in message


def test_other_errors_pass_as_they_are():
    with pytest.raises(RuntimeError, match="out of memory"), one_line_errors():
        raise RuntimeError("CUDA out of memory")


def test_labels_that_are_cut_while_in_use_are_one_line(tmp_path):
    km = tmp_path / "train.km"
    km.write_text("".join(" ".join(str(i % 40) for i in range(9_000)) + "\n" for _ in range(3)))
    cut, offsets = memmap_files(km)
    np.save(cut, np.tile(np.arange(9_000) % 40, 3).astype(np.uint16))
    np.save(offsets, np.arange(4) * 9_000)
    store = LabelStore(km)
    assert store.units(2, 8_990).tolist() == [i % 40 for i in range(8_990, 9_000)]
    os.truncate(cut, 5_000)
    with pytest.raises(InputError, match=f"{cut.name}: it has been cut"):
        store.units(2, 8_990)
    assert store.units(0, 0, 5).tolist() == [0, 1, 2, 3, 4]


def test_a_manifest_that_is_cut_while_in_use_is_one_line(tmp_path):
    file = tmp_path / "train.tsv"
    file.write_text(f"{tmp_path}\n" + "".join(f"{i:04}.wav\t20000\n" for i in range(2_000)))
    manifest = Manifest(file)
    os.truncate(file, 6_000)
    with pytest.raises(InputError, match=r"train\.tsv: it has been cut"):
        manifest.name(1_900)
    assert manifest.name(3) == "0003.wav"


def _tensorboard(folder):
    bar = progress_bar.TensorboardProgressBarWrapper([], str(folder))
    bar.wrapped_bar = SimpleNamespace(log=lambda *args, **kwargs: None, update_config=print)
    return bar


def test_a_folder_whose_name_is_no_text_is_trained_in_without_tensorboard(tmp_path, capsys):
    patch_logs()
    bar = _tensorboard(tmp_path / os.fsdecode(b"\xe9"))
    try:
        bar.update_config({"model": {"layers": 2}})
        for step in range(2):
            bar.log({"loss": step, "num_updates": step}, tag="train", step=step)
    finally:
        progress_bar._tensorboard_writers.clear()
        progress_bar.tensorboard_is_full = False
    (line,) = capsys.readouterr().err.splitlines()
    assert line.endswith("\\udce9: its name is not UTF-8; training continues without it")


def test_logs_on_a_full_disk_are_one_line_each(tmp_path, capsys):
    patch_logs()
    logger = logging.Logger("of its own")
    logger.addHandler(logging.FileHandler(tmp_path / "train.log"))
    bar = _tensorboard(tmp_path / "tensorboard")
    logger.info("before")
    try:
        with full_disk(100):
            for step in range(4):
                logger.info("a line " * 20)
                bar.log({"loss": step, "num_updates": step}, tag="train", step=step)
        assert not progress_bar._tensorboard_writers
    finally:
        progress_bar._tensorboard_writers.clear()
        progress_bar.tensorboard_is_full = False
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2, lines
    assert f"{tmp_path}/train.log: File too large; training continues without it" in lines[0]
    assert f"{tmp_path}/tensorboard: File too large" in lines[1]
