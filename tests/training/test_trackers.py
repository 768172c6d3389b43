"""Weights & Biases offline, trackio, and what TensorBoard shows of a run."""

import os
import re
import sys
from types import SimpleNamespace

import pytest
from fairseq import checkpoint_utils
from fairseq.logging import progress_bar
from omegaconf import OmegaConf
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from music_ssl_fairseq.errors import InputError
from music_ssl_fairseq.training import logs as trackers
from tests.fairseq_commands import SHALLOW, logged, train


@pytest.fixture(autouse=True)
def names(monkeypatch):
    monkeypatch.delenv("WANDB_NAME", raising=False)
    monkeypatch.delenv("MUSIC_SSL_RUN_NAME", raising=False)
    yield
    for name in ("WANDB_NAME", "MUSIC_SSL_RUN_NAME"):
        os.environ.pop(name, None)
    progress_bar.wandb = trackers._WANDB


class Recorder:
    """In trackio's place: what it was given."""

    def __init__(self):
        self.begun, self.lines = [], []

    def init(self, **given):
        self.begun.append(given)

    def log(self, numbers, step):
        self.lines.append((step, numbers))


def test_a_run_is_in_trackio_and_its_pace_and_settings_in_tensorboard(here, monkeypatch):
    recorder = Recorder()
    monkeypatch.setattr(trackers, "optional", lambda module, extra: recorder)
    vars(checkpoint_utils.save_checkpoint)["best"] = -1.0  # of a run before, in this process
    settings = [
        *SHALLOW["music_hubert"],
        "optimization.max_update=4",
        "hydra.run.dir=runs/a/b",
        "task.label_dir=labels",
    ]
    settings = [s for s in settings if not s.startswith("common.tensorboard_logdir")]
    train("music_hubert", *settings, "task.trackio_project=songs", "checkpoint.no_save=true")
    (begun,) = recorder.begun
    assert (begun["project"], begun["name"], begun["resume"]) == ("songs", "a/b", "allow")
    assert begun["config"]["model"]["mask_prob"] == 0.8
    assert checkpoint_utils.save_checkpoint.best > 0
    steps = [(step, n) for step, n in recorder.lines if "train_inner/loss" in n]
    assert [step for step, _ in steps] == [1, 2, 3, 4]
    assert all("train_inner/eta_hours" in numbers for _, numbers in steps[:3])
    assert any("valid/loss" in numbers for _, numbers in recorder.lines)
    for line in logged(here / "runs/a/b", "train_inner"):
        per_second = pytest.approx(line["wps"] / 16_000, abs=0.06, rel=0.05)  # an instant later
        assert line["audio_seconds_per_second"] == per_second
    events = EventAccumulator(str(here / "runs/a/b/tensorboard/train_inner"))
    events.Reload()
    assert {"audio_seconds_per_second", "eta_hours", "loss"} <= set(events.Tags()["scalars"])
    content = events.summary_metadata["_hparams_/session_start_info"].plugin_data.content
    for name in (b"model.mask_prob", b"optimization.max_update", b"task.crop_seconds"):
        assert name in content


def whole(save_dir="runs/x/short/checkpoints", **projects):
    common = {"wandb_project": projects.get("wandb")}
    task = {"trackio_project": projects.get("trackio")}
    return OmegaConf.create({"common": common, "task": task, "checkpoint": {"save_dir": save_dir}})


def test_runs_have_the_names_of_their_folders(monkeypatch):
    monkeypatch.setattr(trackers, "_WANDB", SimpleNamespace(run=None))
    for run in ("short", "short_mask_prob-0.5"):  # of a sweep
        trackers.choose_tracker(whole(f"runs/x/{run}/checkpoints", wandb="songs"))
        assert os.environ["WANDB_NAME"] == f"x/{run}"
    os.environ["WANDB_NAME"] = "my own"
    trackers.choose_tracker(whole(wandb="songs"))
    assert os.environ["WANDB_NAME"] == "my own"


def test_what_is_missing_is_one_line(monkeypatch):
    monkeypatch.setattr(trackers, "_WANDB", None)
    with pytest.raises(InputError, match=r"needs wandb: .*task\.trackio_project=songs"):
        trackers.choose_tracker(whole(wandb="songs"))
    with pytest.raises(InputError, match="give one of them"):
        trackers.choose_tracker(whole(wandb="songs", trackio="others"))
    monkeypatch.setitem(sys.modules, "trackio", None)
    with pytest.raises(InputError, match=re.escape("pip install -e '.[trackio]'")):
        trackers.choose_tracker(whole(trackio="songs"))


def test_wandb_has_one_run_for_all_progress_bars(monkeypatch):
    begun = []
    wandb = SimpleNamespace(
        run=None, init=lambda **given: begun.append(given) or setattr(wandb, "run", 1)
    )
    wandb.finish = lambda: setattr(wandb, "run", None)
    monkeypatch.setattr(trackers, "_WANDB", wandb)
    for run in ("short", "long"):
        trackers.choose_tracker(whole(f"runs/x/{run}/checkpoints", wandb="songs"))
        for _ in range(2):  # an epoch, a validation
            trackers.begin_once(SimpleNamespace(), None, "songs", os.environ["WANDB_NAME"])
    assert begun == [{"project": "songs", "name": f"x/{run}"} for run in ("short", "long")]


def test_wandb_gets_each_line_at_once(monkeypatch):
    recorder = Recorder()
    monkeypatch.setattr(progress_bar, "wandb", recorder)
    trackers.log_together(None, {"num_updates": 7, "loss": 1.5, "gnorm": 2, "text": "x"}, "train")
    assert recorder.lines == [(7, {"train/loss": 1.5, "train/gnorm": 2})]
