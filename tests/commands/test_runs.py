"""One run folder, one run: what may change when a command is given again, and what is refused."""

import contextlib
import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf

from hydra_plugins.music_ssl_fairseq_config import _sweep_name, _task_name
from music_ssl_fairseq.data.manifest import Manifest
from music_ssl_fairseq.data.pretraining_dataset import PretrainingDataset
from music_ssl_fairseq.data.run_identity import differences, label_identity, manifest_identity
from music_ssl_fairseq.runtime.files import hold
from music_ssl_fairseq.tasks.run_folder import EARLY_STOPPING, _finished
from tests.fairseq_commands import TINY, logged, make_corpus, train, validate

LAST = Path("run/checkpoints/checkpoint_last.pt")
RUN = [*TINY, "hydra.run.dir=run", "model.encoder_layers=1"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A corpus with labels, and a musicHuBERT of one update."""
    folder = make_corpus(tmp_path_factory.mktemp("runs"))
    with contextlib.chdir(folder):
        train("music_hubert", *RUN, "optimization.max_update=1")
    return folder


@pytest.fixture
def here(trained, tmp_path, monkeypatch):
    """A copy of it as the working folder; its audio stays where it is."""
    for name in ("manifests", "labels", "run"):
        shutil.copytree(trained / name, tmp_path / name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def updates() -> int:
    """How many updates the run's checkpoint has seen."""
    return torch.load(LAST, weights_only=True)["optimizer_history"][-1]["num_updates"]


def refused(*overrides: str) -> str:
    """The line that the command ends with, and a command; the checkpoint stays as it was."""
    before = LAST.read_bytes()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "orig_argv", ["fairseq-hydra-train"])
        with pytest.raises(SystemExit) as end:
            train("music_hubert", *RUN, "optimization.max_update=2", *overrides)
    message = str(end.value)
    message, *below = message.split("\n")
    assert message.startswith("error: ")
    assert [line.split()[0] for line in below] in ([], ["fairseq-hydra-train"], ["ls"])
    assert LAST.read_bytes() == before
    return message


def relabel(folder: str, k: int) -> None:
    """Replace the units by others, of as many frames."""
    rng = np.random.default_rng(k)
    for file in Path(folder).glob("*.km"):
        counts = [len(line.split()) for line in file.read_text().splitlines()]
        lines = [" ".join(map(str, rng.integers(0, k, count))) for count in counts]
        file.write_text("".join(f"{line}\n" for line in lines))
    Path(folder, "dict.km.txt").write_text("".join(f"{unit} 1\n" for unit in range(k)))
    Path(folder, "metadata.json").write_text(
        json.dumps({"label_rate": 100, "k": k, "features": "logmel"})
    )


def reorder(file: str) -> None:
    """Move the first track to the end of a manifest."""
    root, first, *others = Path(file).read_text().splitlines()
    Path(file).write_text("".join(f"{line}\n" for line in (root, *others, first)))


@pytest.mark.parametrize(
    ("change", "overrides", "says"),
    [
        (lambda: relabel("labels", 12), [], "train.km is k=12 logmel 100 a second ["),
        (lambda: relabel("labels", 20), [], "train.km is k=20 logmel 100 a second ["),
        (lambda: reorder("manifests/train.tsv"), [], "train.tsv is 6 tracks of "),
        (lambda: reorder("manifests/valid.tsv"), [], "valid.tsv is 3 tracks of "),
        (None, ["model.mask_prob=0.5"], "model.mask_prob is 0.5 and was 0.8"),
        (
            None,
            ["common.seed=7", "task.crop_seconds=1.5", "criterion.features_pen_weight=0"],
            "task.crop_seconds is 1.5 and was 1.0; task.seed is 7 and was 1337; "
            "criterion.features_pen_weight is 0.0 and was 10.0.",
        ),
    ],
)
def test_other_data_and_settings_are_refused(here, change, overrides, says):
    if change:
        change()
    message = refused(*overrides)
    assert says in message
    assert "run/checkpoints/checkpoint_last.pt: is of another run" in message
    assert "another hydra.run.dir" in message


def test_moved_data_another_batch_and_more_updates_continue(here):
    shutil.move("labels", "moved")
    for file in (Path("manifests/train.tsv"), Path("manifests/valid.tsv")):
        root, *tracks = file.read_text().splitlines()
        Path("music").unlink(missing_ok=True)
        Path("music").symlink_to(root)
        file.write_text("".join(f"{line}\r\n" for line in (Path("music").absolute(), *tracks)))
    options = ["dataset.batch_size=1", "optimization.update_freq=[2]", "optimization.lr=[0.001]"]
    options += ["optimization.max_update=2", "task.label_dir=moved", "model.precision=fp32"]
    train("music_hubert", *RUN, *options)
    assert updates() == 2


def test_a_finished_run_says_so_and_does_nothing(here):
    before = LAST.read_bytes()
    train("music_hubert", *RUN, "optimization.max_update=1")
    assert LAST.read_bytes() == before
    text = Path("run/hydra_train.log").read_text()
    assert "finished: " in text
    assert "1 updates done, and optimization.max_update is 1" in text
    assert len(logged(Path("run"), "train_inner")) == 1


def test_a_checkpoint_is_continued_on_purpose_and_validated_on_other_data(here, capsys):
    relabel("labels", 12)
    own = ["hydra.run.dir=own", f"checkpoint.restore_file={LAST.absolute()}"]
    train("music_hubert", *RUN, "optimization.max_update=2", *own)
    text = Path("own/hydra_train.log").read_text()
    assert "is of another run (train.km is k=12 logmel" in text
    assert Path("own/checkpoints/checkpoint_best.pt").exists() == ("_best.pt" in text)
    assert [step["num_updates"] for step in logged(Path("own"), "train_inner")] == [2]
    # The same command continues that run, and does not begin again.
    train("music_hubert", *RUN, "optimization.max_update=3", *own)
    assert "continues this run, which began with" in Path("own/hydra_train.log").read_text()
    assert [step["num_updates"] for step in logged(Path("own"), "train_inner")] == [2, 3]
    validate(LAST, Path("manifests"), "music_hubert_pretraining", "--label-dir", "labels")
    assert '"valid_loss"' in "".join(capsys.readouterr())
    relabel("labels", 20)
    message = refused("hydra.run.dir=third", f"checkpoint.restore_file={LAST.absolute()}")
    assert "checkpoint_last.pt: does not fit the model of these settings: size mismatch" in message


def test_a_checkpoint_without_optimizer_state_says_what_starts_anew(here):
    state = torch.load(LAST, weights_only=False)
    del state["last_optimizer_state"]
    torch.save(state, LAST)
    train("music_hubert", *RUN, "optimization.max_update=2")
    assert "has no optimizer state" in Path("run/hydra_train.log").read_text()


def test_validation_with_other_numbers_of_units_is_one_line(here, capsys):
    relabel("labels", 20)
    with pytest.raises(SystemExit, match=r"does not fit the labels and settings .* label_embs"):
        validate(LAST, here / "manifests", "music_hubert_pretraining", "--label-dir", "labels")


def test_a_checkpoint_of_an_earlier_version_is_continued_with_a_warning(here):
    state = torch.load(LAST, weights_only=True)
    state["task_state"] = {}
    torch.save(state, LAST)
    train("music_hubert", *RUN, "optimization.max_update=2")
    assert updates() == 2
    log = Path("run/hydra_train.log").read_text()
    assert "an earlier version wrote it without its data and settings" in log


def test_a_folder_in_which_another_process_trains_is_refused(here):
    with hold("run/checkpoints.lock", "trains", ""):
        message = refused()
    assert "/run: process " in message
    assert "trains here already; wait for it or stop it" in message


@pytest.mark.parametrize("family", ["music2vec", "music_hubert"])
def test_epochs_without_a_number_of_updates_are_a_sentence(here, family):
    options = ["hydra.run.dir=new", "optimization.max_update=0", "optimization.max_epoch=2"]
    with pytest.raises(SystemExit) as end:
        train(family, *TINY, *options)
    message = str(end.value)
    assert message.startswith("error: optimization.max_update=0: lr_scheduler ")
    assert "give optimization.max_update=N" in message


def test_epochs_are_trained_with_a_rate_that_needs_no_number(here):
    options = ["hydra.run.dir=new", "optimization.max_update=0", "optimization.max_epoch=1"]
    # fairseq would save no epoch but every second
    train("music_hubert", *RUN, *options, "lr_scheduler._name=fixed", "checkpoint.save_interval=2")
    assert len(logged(Path("new"), "train_inner")) > 1
    assert Path("new/checkpoints/checkpoint_last.pt").exists()


def test_resets_act_once_and_the_same_command_continues(here):
    reset = ["checkpoint.reset_optimizer=true", "checkpoint.reset_dataloader=true"]
    train("music_hubert", *RUN, "optimization.max_update=2", *reset)
    train("music_hubert", *RUN, "optimization.max_update=3", *reset)
    train("music_hubert", *RUN, "optimization.max_update=3", *reset)
    text = Path("run/hydra_train.log").read_text()
    assert text.count("began with checkpoint.reset_optimizer=true checkpoint.reset_data") == 2
    assert text.count("finished: ") == 1
    assert "optimization.max_update=3: the learning rate never reaches its peak" in text
    numbers = [step["num_updates"] for step in logged(Path("run"), "train_inner")]
    assert numbers == [1, 1, 2, 3]
    # Another reset is another beginning.
    train("music_hubert", *RUN, "optimization.max_update=1", reset[0])
    assert updates() == 1


def test_a_schedule_follows_another_one_and_weights_have_no_past(here):
    new = ["hydra.run.dir=new", "optimization.max_update=1", "lr_scheduler._name=fixed"]
    train("music_hubert", *RUN, *new)
    train("music_hubert", *RUN, "hydra.run.dir=new", "optimization.max_update=2")
    assert [step["num_updates"] for step in logged(Path("new"), "train_inner")] == [1, 2]
    state = torch.load(LAST, weights_only=True)
    state["extra_state"]["previous_training_time"] = 7200.0
    torch.save(state, LAST)
    start = ["hydra.run.dir=tuned", f"checkpoint.finetune_from_model={LAST.absolute()}"]
    short = ["optimization.max_update=2", "lr_scheduler.warmup_updates=1"]
    train("music_hubert", *RUN, *short, *start)
    text = Path("tuned/hydra_train.log").read_text()
    assert " 2 updates in 2 h" not in text
    assert "never reaches its peak" not in text
    message = refused("checkpoint.reset_meters=true", start[1])
    assert "does not go with checkpoint.reset_meters" in message


@pytest.mark.parametrize(
    ("setting", "says"),
    [
        ("checkpoint.restore_file=run", "=run: a folder; give a checkpoint file in it"),
        ("checkpoint.finetune_from_model=run", "=run: a folder; give a checkpoint file in it"),
        ("checkpoint.continue_once=gone.pt", "=gone.pt: no such checkpoint"),
        ("task.data=manifests/train.tsv", "manifests/train.tsv: a file; give the folder"),
        ("lr_scheduler._name=fixd", "lr_scheduler._name=fixd: no such lr_scheduler"),
        (
            "lr_scheduler._name=manual",
            "lr_scheduler=manual: its rates are options of fairseq-train",
        ),
        ("task.label_dir=labels/train.km", "labels/train.km: a file; give the folder"),
    ],
)
def test_what_is_no_such_thing(here, setting, says):
    assert says in refused("hydra.run.dir=new", setting)  # of the first two, fairseq takes nothing


def test_a_rate_that_ends_a_run_before_its_first_update_is_refused(here):
    options = ["hydra.run.dir=new", "optimization.stop_min_lr=1"]
    with pytest.raises(SystemExit, match=r"and optimization\.stop_min_lr is 1, so that n"):
        train("music_hubert", *RUN, *options)


def test_a_metric_that_validation_does_not_give_costs_no_update(here):
    options = ["hydra.run.dir=new", "optimization.max_update=1"]
    with pytest.raises(SystemExit, match="best_checkpoint_metric=acuracy_m: validation gives loss"):
        train("music_hubert", *RUN, *options, "checkpoint.best_checkpoint_metric=acuracy_m")
    train("music_hubert", *RUN, *options, "checkpoint.best_checkpoint_metric=accuracy_m")
    assert len(logged(Path("new"), "train_inner")) == len(logged(Path("new"), "valid")) == 1
    assert Path("new/checkpoints/checkpoint_best.pt").exists()


def test_the_split_that_is_trained_on_has_other_crops_each_epoch(here):
    options = ["hydra.run.dir=new", "optimization.max_update=1", "dataset.train_subset=valid"]
    data = []
    with pytest.MonkeyPatch.context() as patch:
        init = PretrainingDataset.__init__
        noted = lambda self, *a, **k: init(self, *a, **k) or data.append(self)  # noqa: E731
        patch.setattr(PretrainingDataset, "__init__", noted)
        train("music_hubert", *RUN, *options, "dataset.valid_subset=train")
    assert [len(d._manifest) for d in data if d.training] == [3]
    assert [len(d._manifest) for d in data if not d.training] == [6]


def stopped(**limits):
    """Say why a run stops that has made 3 updates in 2 epochs, in half an hour."""
    optimization = {"max_update": 0, "max_epoch": 0, "stop_time_hours": 0.0}
    checkpoint = {
        "patience": -1,
        "save_dir": "run",
        "reset_optimizer": False,
        "reset_dataloader": False,
    }
    for key, value in limits.items():
        (optimization if key in optimization else checkpoint)[key] = value
    state = {
        "optimizer_history": [{"num_updates": 3}],
        "extra_state": {"train_iterator": {"epoch": 3}, "previous_training_time": 1800},
        "task_state": {EARLY_STOPPING: {"best": 1.0, "num_runs": 4}},
    }
    cfg = OmegaConf.create({"optimization": optimization, "checkpoint": checkpoint})
    return _finished(cfg, state, Path("run/a.pt"))


@pytest.mark.parametrize(
    ("reached", "not_reached"),
    [
        ({"max_update": 3}, {"max_update": 4}),
        ({"max_epoch": 2}, {"max_epoch": 3}),
        ({"stop_time_hours": 0.4}, {"stop_time_hours": 0.6}),
        ({"patience": 4}, {"patience": 5}),
    ],
)
def test_every_limit_of_fairseq_finishes_a_run(reached, not_reached):
    assert "Nothing is left to do" in stopped(**reached)
    assert not stopped(**not_reached)
    assert not stopped()
    assert not stopped(max_update=3, reset_optimizer=True)
    assert not stopped(max_epoch=2, reset_dataloader=True)


def test_labels_and_tracks_are_compared_byte_by_byte(here):
    before = label_identity("labels", ["train", "valid", "none"], 100.0)
    tracks = manifest_identity(Manifest("manifests/train.tsv"))
    assert list(before) == ["train.km", "valid.km"]
    text = Path("labels/valid.km").read_text()
    Path("labels/valid.km").write_text(text[:-2] + ("1" if text[-2] != "1" else "2") + "\n")
    after = label_identity("labels", ["train", "valid"], 100.0)
    assert after["train.km"] == before["train.km"]
    assert differences(after, before).startswith("valid.km is ")
    assert differences(after, {}) == ""  # what an earlier version did not record
    rows = Path("manifests/train.tsv").read_text()
    Path("manifests/train.tsv").write_text("/elsewhere" + rows[rows.index("\n") :].rstrip("\n"))
    assert manifest_identity(Manifest("manifests/train.tsv")) == tracks


@pytest.mark.parametrize(
    ("argv", "overrides", "name"),
    [
        (["-m", "a.x=1,2", "b=3"], ["a.x=2", "b=3"], "_x-2"),
        (["-m", "a.x=1,2", "c.x=3,4"], ["a.x=2", "c.x=4"], "_a_x-2_c_x-4"),
        (["-m", "+a.x=/p/q/run one/best.pt,y"], ["+a.x=/p/q/run one/best.pt"], "_x-q_run_one_best"),
        (["-m", "lr=[0.1],[0.2]", "left=1,2"], ["lr=[0.1]", "left=2"], "_lr-0.1"),
        (["-m", "left=1,2"], ["left=2"], ""),
        (["-m", "b=3"], ["b=3", "a=1"], "_a-1_b-3"),  # a sweep from a file
    ],
)
def test_a_sweep_s_runs_are_named_by_what_it_sweeps(monkeypatch, argv, overrides, name):
    monkeypatch.setattr("sys.argv", ["fairseq-hydra-train", *argv])
    assert _sweep_name(overrides, "left") == name


def test_long_names_stay_apart(monkeypatch):
    monkeypatch.setattr("sys.argv", ["fairseq-hydra-train", "-m", "a=1,2"])
    found = {_sweep_name([f"a={'x' * 300}{i}"]) for i in range(3)}
    assert len(found) == 3
    assert max(map(len, found)) < 130


def test_a_probe_s_folder_is_named_after_its_task(tmp_path):
    assert _task_name(str(tmp_path / "own")) == "own"
    (tmp_path / "task.json").write_text('{"name": "my task/2"}')
    assert _task_name(str(tmp_path)) == "my_task_2"
