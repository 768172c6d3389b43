"""examples/music_hubert: each configuration trains on the labels that its header makes."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import fairseq
import numpy as np
import pytest
import torch
from omegaconf import OmegaConf

from music_ssl_fairseq.features import FRONT_ENDS, FeatureSpec
from music_ssl_fairseq.frames import FrameGrid, conv_grid, parse_conv_layers
from music_ssl_fairseq.label.__main__ import get_parser, main
from tests import EXAMPLES
from tests.fairseq_commands import ONE_UPDATE, SHALLOW, TINY, logged, make_corpus, train

CONFIGS = EXAMPLES / "music_hubert"
SCHEDULES = ("short", "day", "random_projection", "curriculum", "visible")
SIZES_ALONE = ("long_crops", "long_filters")  # differ in what a tiny model replaces
HARMONIC = ("harmonic", "harmonic_deep")
OTHERS = ("config", "run_folder", *SCHEDULES, *SIZES_ALONE, *HARMONIC, "tiny")
VARIANTS = sorted(path.stem for path in CONFIGS.glob("*.yaml") if path.stem not in OTHERS)
PAPER = {"mfcc60", "k2000", "k2000_iteration2"}  # and config itself
ASKED = {"k100", "chroma", "cqt", "early_layer"}
K = 12


def make_labels(folder: Path, rate: int) -> None:
    """Random ones, for manifests/, as the labeler leaves them."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    grid = FrameGrid(400, 16000 // rate)
    for split in ("train", "valid"):
        lengths = [
            int(line.split("\t")[1])
            for line in Path(f"manifests/{split}.tsv").read_text().splitlines()[1:]
        ]
        rows = (rng.integers(0, K, grid.num_frames(length)) for length in lengths)
        text = "".join(" ".join(map(str, row)) + "\n" for row in rows)
        (folder / f"{split}.km").write_text(text)
    (folder / "dict.km.txt").write_text("".join(f"{unit} 1\n" for unit in range(K)))
    (folder / "metadata.json").write_text(json.dumps({"label_rate": rate, "k": K}))


def header_commands(name: str) -> list[list[str]]:
    """The arguments of each `label` line in a configuration's header."""
    comments = re.findall(r"^# ?(.*)$", (CONFIGS / f"{name}.yaml").read_text(), re.MULTILINE)
    text = "\n".join(comments).replace("\\\n", " ")
    return [
        shlex.split(line) for line in re.findall(r"python -m music_ssl_fairseq label (.*)", text)
    ]


def header_command(name: str) -> list[str]:
    (command,) = header_commands(name)
    return command


def test_there_are_those_of_the_paper_and_its_questions():
    assert set(VARIANTS) >= PAPER | ASKED


@pytest.mark.parametrize("name", VARIANTS)
def test_each_composes_and_trains_on_the_labels_of_its_header(here, name):
    wanted = get_parser().parse_args(header_command(name))
    features = FeatureSpec(wanted.features, wanted.checkpoint, wanted.layer)
    make_labels(Path(wanted.labels), 50 if features.name == "deep" else 100)
    train("music_hubert", *SHALLOW["music_hubert"], *ONE_UPDATE, config_name=name)
    run = Path(f"runs/music_hubert/{name}")
    assert len(logged(run, "train_inner")) == 1
    state = torch.load(run / "checkpoints/checkpoint_last.pt", weights_only=True)
    assert state["cfg"]["model"]["_name"] == "music_hubert"
    assert state["cfg"]["optimizer"]["_name"] in ("fused_adamw", "muon")  # no default
    assert state["cfg"]["task"]["label_dir"] == str(here / wanted.labels)


@pytest.mark.parametrize("name", SCHEDULES)
def test_short_recipes_train(here, name):
    train("music_hubert", *SHALLOW["music_hubert"], *ONE_UPDATE, config_name=name)
    state = torch.load(
        f"runs/music_hubert/{name}/checkpoints/checkpoint_last.pt", weights_only=True
    )
    assert state["cfg"]["model"]["residual_init"] == 0.1
    assert state["cfg"]["criterion"]["features_pen_weight"] == 0


def test_longer_crops_and_filters_keep_the_frame_rate_and_the_audio_per_update():
    crops, filters = (OmegaConf.load(CONFIGS / f"{name}.yaml") for name in SIZES_ALONE)
    assert crops.task.crop_seconds * crops.dataset.batch_size == 480
    grid = conv_grid(parse_conv_layers(filters.model.conv_feature_layers))
    assert (grid.hop, grid.window) == (320, 1024 + 160)


@pytest.mark.parametrize("name", HARMONIC)
def test_the_harmonic_recipes_train_on_the_label_sets_of_their_headers(here, name):
    sets = 0
    for command in header_commands(name):
        wanted = get_parser().parse_args(command)
        several = wanted.features.split(",")
        for features in several:
            folder = Path(wanted.labels) / features if len(several) > 1 else Path(wanted.labels)
            make_labels(folder, 50 if features == "deep" else 100)
        sets += len(several)
    layers = [1] * (sets - 1) + [2]
    small = ["model.pitch_bands=12", "model.pitch_taps=1024", f"model.label_layers={layers}"]
    train("music_hubert", *TINY, *small, *ONE_UPDATE, config_name=name)
    (step,) = logged(Path(f"runs/music_hubert/{name}"), "train_inner")
    assert step["loss_m"] == pytest.approx(
        sum(step[f"loss_m_{number}"] for number in range(sets)), abs=1e-3
    )


@pytest.mark.parametrize("name", [*VARIANTS, "harmonic_deep", "long_filters"])
def test_missing_labels_get_the_command_of_the_header(here, name):
    """Another command would make other labels in their folder, and training would take them."""
    wanted = get_parser().parse_args(header_commands(name)[-1])
    if name == "harmonic_deep":
        for folder in ("mfcc", "chroma"):
            make_labels(Path("labels") / folder, 100)
    with pytest.raises(SystemExit) as failure:
        train("music_hubert", *TINY, "optimization.max_update=1", config_name=name)
    command = str(failure.value).splitlines()[-1]
    assert f"labels/{Path(wanted.labels).name}" in command
    given = get_parser().parse_args(shlex.split(command)[4:])
    for option in ("k", "features", "layer", "checkpoint"):
        assert getattr(given, option) == getattr(wanted, option)


@pytest.mark.parametrize("name", VARIANTS)
def test_each_says_what_it_is_in_a_few_lines(name):
    text = (CONFIGS / f"{name}.yaml").read_text()
    assert "Audio per update" in text
    assert f"--config-dir examples/music_hubert --config-name {name}\n" in text
    config = OmegaConf.load(CONFIGS / f"{name}.yaml")
    assert list(config) == ["defaults", "task"]
    wanted = get_parser().parse_args(header_command(name))
    named = {"k100": 100, "k2000": 2000, "k2000_iteration2": 2000}
    assert wanted.k == named.get(name, 500)
    assert wanted.features.split("+")[0] in [*FRONT_ENDS, "deep"]


def test_a_rate_that_contradicts_the_labeler_is_one_line(here):
    with pytest.raises(SystemExit) as failure:
        train("music_hubert", *TINY, "task.label_rate=50")
    message = str(failure.value)
    assert message.count("\n") == 1  # the command below
    assert "task.label_rate is 50, but " in message
    assert "labels/metadata.json says 100" in message


def test_labels_from_elsewhere_need_a_rate(here):
    Path("labels/metadata.json").unlink()
    with pytest.raises(SystemExit) as failure:
        train("music_hubert", *TINY)
    message = str(failure.value)
    assert message.count("\n") == 1  # the command below
    assert "labels/metadata.json: no such file" in message
    assert "set task.label_rate" in message
    train("music_hubert", *SHALLOW["music_hubert"], "task.label_rate=100", *ONE_UPDATE)
    assert len(logged(Path("runs/music_hubert/config"), "train_inner")) == 1


def test_stock_fairseq_trains_on_our_manifests_and_labels(tmp_path, monkeypatch):
    """Its own task, model and criterion, in its own recipe; features that are not its own."""
    from fairseq_cli.hydra_train import cli_main

    monkeypatch.chdir(tmp_path)
    # Stock fairseq does not resample: tracks at 16 kHz.
    make_corpus(tmp_path, sample_rate=16000)
    labels = [*("--k", str(K)), "--features", "chroma", "--labels", "chroma", "--workers", "1"]
    assert main(labels) == 0
    recipe = Path(fairseq.__file__).parent / "examples" / "hubert" / "config" / "pretrain"
    # ++: the recipe leaves most of the model to its defaults.
    options = [f"++{option}" for option in TINY if not option.startswith("task.")]
    arguments = [
        *("fairseq-hydra-train", "--config-dir", str(recipe)),
        *("--config-name", "hubert_base_librispeech"),
        *options,
        f"task.data={tmp_path / 'manifests'}",
        f"task.label_dir={tmp_path / 'chroma'}",
        "task.labels=[km]",
        "task.max_sample_size=16000",
        "task.min_sample_size=8000",
        "model.label_rate=100",
        "dataset.max_tokens=null",
        "dataset.required_batch_size_multiple=1",
        "optimization.max_update=2",
        "distributed_training.distributed_world_size=1",
        "distributed_training.ddp_backend=no_c10d",
        "checkpoint.no_save=true",
        "common.cpu=true",
        "common.fp16=false",
        "hydra.run.dir=stock",
    ]
    monkeypatch.setattr(sys, "argv", arguments)
    cli_main()
    steps = logged(tmp_path / "stock", "train_inner")
    assert [step["num_updates"] for step in steps] == [1, 2]
    assert all(np.isfinite(step["loss"]) for step in steps)


def iterate(*arguments: str) -> subprocess.CompletedProcess:
    """`bash examples/music_hubert/iterate.sh ...` with the commands in `bin`, and this Python's."""
    folders = [str(Path("bin").absolute()), str(Path(sys.executable).parent), os.environ["PATH"]]
    return subprocess.run(
        [shutil.which("bash") or "bash", str(CONFIGS / "iterate.sh"), *arguments],
        env={**os.environ, "PATH": os.pathsep.join(folders), "OMP_NUM_THREADS": "1"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )


def test_iterate_goes_on_to_a_second_model(here):
    """The script's trainings note their arguments, and this process trains: it has fairseq."""
    stub = Path("bin/fairseq-hydra-train")
    stub.parent.mkdir()
    stub.write_text('#!/bin/sh\nprintf "%s\\n" "$@" >> trained\n')
    stub.chmod(0o755)
    tiny = [*TINY, "optimization.max_update=2"]
    out = Path("runs/music_hubert/iterate")
    # As if it had been stopped when the first model was finished.
    train("music_hubert", *tiny, f"hydra.run.dir={out}/model_1", f"task.label_dir={here}/labels")
    (out / "model_1" / "finished").touch()
    (out / "model_2").mkdir()
    done = iterate("--layer", "3", "--k", str(K), *tiny)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("trained already") == 1
    metadata = json.loads((out / "labels_2" / "metadata.json").read_text())
    assert (metadata["features"], metadata["layer"], metadata["label_rate"]) == ("deep", 3, 50)
    config_dir, folder, config_name, name, *overrides = Path("trained").read_text().splitlines()
    assert (config_dir, config_name) == ("--config-dir", "--config-name")
    assert (folder, name) == (str(CONFIGS), "k2000_iteration2")
    train("music_hubert", *overrides, config_name=name)
    assert [step["num_updates"] for step in logged(out / "model_2", "train_inner")] == [1, 2]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--manifests", "gone"], "gone/train.tsv: no such manifest"),
        (["--layers", "6"], "no option --layers"),
        (["tiny"], "tiny: neither an option nor an override"),
        (["--k"], "--k needs a value"),
    ],
)
def test_iterate_says_what_is_wrong(arguments, says):
    done = iterate(*arguments)
    assert done.returncode == 1
    assert done.stderr.startswith("error: ")
    assert says in done.stderr
