"""The promised commands: they train, resume, sweep, validate, and say in a line what is missing."""

import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from fairseq.logging import progress_bar
from torch.utils.tensorboard import SummaryWriter

from tests import EXAMPLES
from tests.fairseq_commands import ONE_UPDATE, PACE, SHALLOW, TINY, logged, train, validate

FAMILIES = ["music2vec", "music_hubert"]
NOT_MODELS = ("config", "run_folder", "tiny", "units")
# music_hubert's want labels of their own: test_music_hubert_configs.py
MODELS = sorted(
    path.stem for path in (EXAMPLES / "music2vec").glob("*.yaml") if path.stem not in NOT_MODELS
)


@pytest.mark.parametrize(
    ("family", "settings"),
    [
        ("music2vec", ["model.encode=visible", "model.clone_batch=2"]),
        ("music2vec", ["task.label_dir=labels", "task.label_rate=100"]),
        ("music_hubert", []),
    ],
)
def test_resumed_training_has_the_losses_of_an_uninterrupted_one(here, family, settings):
    # 7 updates over epochs of 6 batches; interrupted in the middle of the first. Dropout and
    # LayerDrop stay on: they have to repeat as well.
    updates = [*SHALLOW[family], *settings, "optimization.max_update=7", "hydra.run.dir=run"]
    keep = ["checkpoint.save_interval_updates=3", "checkpoint.keep_interval_updates=-1"]
    train(family, *updates, *keep)
    whole = logged(Path("run"), "train_inner")
    assert [step["num_updates"] for step in whole] == [1, 2, 3, 4, 5, 6, 7]
    after_three = next(Path("run/checkpoints").glob("checkpoint_*_3.pt"))
    shutil.copy(after_three, "run/checkpoints/checkpoint_last.pt")
    Path("run/hydra_train.log").unlink()
    train(family, *updates)
    resumed = logged(Path("run"), "train_inner")
    assert [step["num_updates"] for step in resumed] == [4, 5, 6, 7]
    for key in whole[0].keys() - PACE:
        assert [step[key] for step in resumed] == [step[key] for step in whole[3:]], key


def test_units_beside_the_teacher_s_view_are_learned_from_labels(here):
    shutil.move("labels", "labels_of_header")
    Path("labels").mkdir()
    shutil.move("labels_of_header", "labels/chroma")
    small = ["model.pitch_bands=12", "model.pitch_taps=1024"]
    train("music2vec", *TINY, *small, "optimization.max_update=2", config_name="units")
    (step, _) = logged(Path("runs/music2vec/units"), "train_inner")
    assert step["loss_m"] > 0
    assert {"pred_music", "accuracy_m", "perplexity_pred"} <= step.keys()


@pytest.mark.parametrize("name", ["chroma", "mfcc+chroma", "mfcc", "mine"])
def test_missing_labels_are_made_of_the_features_that_name_their_folder(here, name):
    with pytest.raises(SystemExit) as failure:
        train("music2vec", *TINY, f"task.label_dir=labels/{name}", config_name="short")
    command = str(failure.value).splitlines()[-1]
    features = f" --features {name}" if "chroma" in name else ""
    assert command == f"python -m music_ssl_fairseq label --k 500{features} --labels labels/{name}"


def test_weights_of_label_sets_need_label_sets(here):
    with pytest.raises(SystemExit, match=r"label_weights=.* is for label sets, and task"):
        train("music2vec", *TINY, "criterion.label_weights=[2]", config_name="short")


def test_crops_and_losses_do_not_depend_on_workers(here):
    for workers in (0, 2):
        train(
            "music_hubert",
            *SHALLOW["music_hubert"],
            "optimization.max_update=8",  # two epochs
            f"dataset.num_workers={workers}",
            f"hydra.run.dir=run{workers}",
        )
    losses = [[step["loss"] for step in logged(Path(f"run{n}"), "train_inner")] for n in (0, 2)]
    assert losses[0] == losses[1]


@pytest.mark.parametrize("family", FAMILIES)
def test_validation_gives_the_same_loss_each_time(here, family, capsys):
    train(family, *SHALLOW[family], "optimization.max_update=2")
    run = Path(f"runs/{family}/config")
    told = capsys.readouterr().err.splitlines()
    told = [line for line in told if not line.startswith("warning: ")]  # of the short schedule
    assert told[0].startswith(f"{family}: ")
    assert any(line.startswith("train: 6 tracks, 18.8 s, ") for line in told)
    assert f"writes to {run}" in told
    assert re.match(
        rf"trained: 2 updates in [\d.]+ s; best saved valid loss [\d.]+, {run}/", told[-2]
    )
    assert told[-1].startswith("next: python -m music_ssl_fairseq map ")
    in_training = logged(run, "valid")[-1]["valid_loss"]
    losses = []
    for batch_size in ("2", "3"):
        capsys.readouterr()
        validate(
            *(run / "checkpoints/checkpoint_last.pt", Path("manifests"), f"{family}_pretraining"),
            *("--batch-size", batch_size),
        )
        output = capsys.readouterr()
        line = next(x for x in (output.out + output.err).splitlines() if '"valid_loss"' in x)
        losses.append(float(json.loads(line[line.index("{") :])["valid_loss"]))
    assert losses[0] == in_training
    assert losses[1] == pytest.approx(losses[0], abs=2e-4)


SHORT_FILTERS = {"harmonic": ["model.pitch_bands=12", "model.pitch_taps=1024"]}
SETTINGS = {"mask_prob_080": {"mask_prob": 0.80}, "mask_length_5": {"mask_length": 5}}


@pytest.mark.parametrize("name", MODELS)
def test_each_model_composes_and_trains(here, name):
    train("music2vec", *TINY, *SHORT_FILTERS.get(name, []), *ONE_UPDATE, config_name=name)
    run = Path(f"runs/music2vec/{name}")
    assert len(logged(run, "train_inner")) == 1
    state = torch.load(run / "checkpoints/checkpoint_last.pt", weights_only=True)
    text = (EXAMPLES / "music2vec" / f"{name}.yaml").read_text()
    assert "Audio per update" in text
    own = {"_name": "music2vec", **SETTINGS.get(name, {})}
    assert {key: state["cfg"]["model"][key] for key in own} == own
    assert state["cfg"]["optimizer"]["_name"] in ("fused_adamw", "muon")  # no default


def test_sweep(here):
    train("music2vec", *SHALLOW["music2vec"], "optimization.max_update=1,2", "-m")
    runs = sorted(path.parent for path in Path("runs/music2vec").glob("*/checkpoints"))
    assert len(runs) == 2
    assert [len(logged(run, "train_inner")) for run in runs] == [1, 2]


def test_tensorboard(here):
    """In the folder of the run, also of a sweep, where fairseq has the first run's files open."""
    progress_bar._tensorboard_writers["train_inner"] = SummaryWriter("first")
    args = [arg for arg in SHALLOW["music2vec"] if "tensorboard" not in arg]
    train("music2vec", *args, "optimization.max_update=1")
    assert list(Path("runs/music2vec/config/tensorboard/train_inner").glob("events.out.*"))


@pytest.mark.parametrize(
    ("family", "missing", "named", "command"),
    [
        *[
            (f, "manifests", "manifests/train.tsv: no such manifest", "manifests_tools pretrain")
            for f in ("music_hubert", "music2vec")
        ],
        ("music_hubert", "labels", "labels/dict.km.txt", "music_ssl_fairseq label"),
    ],
)
def test_missing_data_are_one_line(here, family, missing, named, command):
    shutil.rmtree(missing)
    with pytest.raises(SystemExit) as failure:
        train(family, *TINY)
    message = str(failure.value)
    assert message.count("\n") == 1  # the command below
    assert named in message
    assert f"python -m {command}" in message


@pytest.mark.parametrize(("damage", "says"), [("line", "valid.km"), ("dict", "dict.km.txt")])
def test_labels_that_do_not_fit_are_one_line(here, damage, says):
    if damage == "line":
        lines = Path("labels/valid.km").read_text().splitlines(keepends=True)
        Path("labels/valid.km").write_text("".join(lines[:-1]))
    else:
        Path("labels/dict.km.txt").write_text("0 1\n1 1\n")
    with pytest.raises(SystemExit) as failure:
        train("music_hubert", *TINY)
    message = str(failure.value)
    assert message.count("\n") == 1  # the command below
    assert says in message


@pytest.mark.parametrize("workers", [0, 2])
def test_deleted_files_stop_training_in_one_line(here, corpus, workers):
    text = Path("manifests/train.tsv").read_text()
    root, *tracks = text.splitlines(keepends=True)
    Path("manifests/train.tsv").write_text("".join([root, *(f"gone/{x}" for x in tracks)]))
    with pytest.raises(SystemExit) as failure:
        train("music2vec", *TINY, f"dataset.num_workers={workers}")
    message, command = str(failure.value).splitlines()
    assert "tracks cannot be read, more than max_unreadable=0.1 allows" in message
    assert command.startswith("python -m manifests_tools check ")
