"""`python -m music_ssl_fairseq probe`: several tasks and encoders in one command."""

import csv
import json
import os
from pathlib import Path

import pytest

from music_ssl_fairseq import probe
from music_ssl_fairseq.__main__ import COMMANDS, main
from music_ssl_fairseq.probing import train_and_score
from tests.probing.probing_data import write_audio, write_probing

QUICK = [
    *("--cpu", "--set", "task.window_seconds=1", "model.hidden_size=8", "model.patience=2"),
    *("model.learning_rates=[0.01]", "optimization.max_epoch=3"),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Two tasks, probed once."""
    folder = tmp_path_factory.mktemp("probe")
    write_audio(folder / "audio", 24, 1.0)
    write_probing(folder / "pitch", folder / "audio", "multi-class", "pitch")
    write_probing(folder / "noise", folder / "audio", "multi-label", "noise")
    (folder / "again").symlink_to(folder / "pitch")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert main(["probe", "--upstream", "logmel", "--task", "pitch", "noise", *QUICK]) == 0
    return folder


@pytest.fixture
def inside(folder, monkeypatch, capsys):
    monkeypatch.chdir(folder)

    def run(*arguments: str, upstream: str = "logmel") -> tuple[int, str, str]:
        status = probe.main(["--upstream", upstream, *QUICK, *arguments])
        said = capsys.readouterr()
        return status, said.out, said.err

    return run


def test_all_tasks_are_trained_scored_and_reported(folder):
    with (folder / "runs/probing/report/report.csv").open() as file:
        lines = [line for line in csv.DictReader(file) if line["source"] == "measured"]
    assert {line["task"] for line in lines} == {"pitch", "noise"}
    assert all(0 <= float(line["low"]) <= float(line["high"]) <= 1 for line in lines)
    (results,) = folder.glob("runs/probing/pitch/logmel-*")
    made_of = json.loads((results / "made_of.json").read_text())
    assert made_of["task"] == "pitch (multi-class, accuracy)"
    assert {"train.tsv", "test.tsv", "labels of test", "optimization.max_epoch"} < set(made_of)


def test_what_is_finished_is_kept(inside):
    status, out, err = inside("--task", "pitch", "noise")
    assert status == 0
    assert err.count("done already") == 2
    assert "pitch  logmel, 1 s  accuracy" in out
    assert "report: runs/probing/report/report.html" in out


def test_results_that_were_changed_are_made_again(inside, folder):
    (file,) = folder.glob("runs/probing/pitch/logmel-*/test.json")
    before = file.read_text()
    file.write_text(before.replace('"task": "pitch"', '"task": "hctip"'))
    status, _, err = inside("--task", "pitch")
    assert status == 0
    assert "results are missing, damaged or changed: probed again" in err
    assert file.read_text() == before
    file.with_name("test_predictions.npz").unlink()
    assert inside("--task", "pitch")[0] == 0
    assert inside("--task", "pitch")[2].count("done already") == 1


def test_a_result_belongs_to_its_settings(inside, folder):
    (file,) = folder.glob("runs/probing/pitch/logmel-*/test.json")
    before = file.stat().st_mtime_ns
    other = ("--task", "pitch", "--set", "model.dropout=0.5")
    status, _, err = inside(*other)
    assert status == 1
    assert err.strip().splitlines()[-2].startswith("error: runs/probing/pitch/logmel-")
    assert "model.dropout is 0.5 and was 0.2" in err
    assert "--force" in err
    assert file.stat().st_mtime_ns == before
    assert inside(*other, "--force")[0] == 0
    assert file.stat().st_mtime_ns > before


def test_a_result_belongs_to_its_audio(inside, folder, tmp_path):
    """Also where name, length and time of change stay."""
    file = folder / "audio" / "20.wav"
    before, times = file.read_bytes(), (file.stat().st_atime_ns, file.stat().st_mtime_ns)
    file.write_bytes(before[:44] + before[:43:-1])
    os.utime(file, ns=times)
    status, _, err = inside("--task", "noise")
    file.write_bytes(before)
    assert status == 1
    assert "audio of test is" in err
    file.rename(tmp_path / "away")  # without it, what is finished stays
    assert inside("--task", "noise")[2].count("done already") == 1
    (tmp_path / "away").rename(file)


def test_what_is_wrong_with_the_test_split_is_found_before_training(inside, folder, monkeypatch):
    monkeypatch.setattr(train_and_score, "update", lambda *_: 1 / 0)
    file = folder / "pitch" / "test.labels"
    before = file.read_text()
    file.write_text(before.replace("low", "lwo", 1))
    status, _, err = inside("--task", "pitch", "--out", "elsewhere")
    file.write_text(before)
    assert status == 1
    assert "pitch/test.labels, line 1 (18.wav): 'lwo' is not one of" in err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--task", "nowhere"], "nowhere/task.json: no such file; `python -m manifests_tools"),
        (["--task", "pitch", "again"], "again: its task is named pitch, as that of pitch"),
        (["--task", "pitch", "--set", "model.layer=4"], "Config'; there are model.upstream,"),
        (["--task", "pitch", "--set", "model.layers"], "--set model.layers: give NAME=VALUE"),
        (["--task", "pitch", "--set", "model.patience=x"], "'x' of type 'str' could not be conv"),
        (["--task", "pitch", "--set", "task.data=x"], "--set task.data: give it with --task"),
        (["--task", "pitch", "--split", "tset"], "pitch: this task has no split tset, only test"),
        (["--task", "pitch/task.json"], "pitch/task.json: a file; give the folder that it is in"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(inside, arguments, said):
    status, _, err = inside(*arguments)
    assert status == 1
    assert len(err.splitlines()) <= 2  # the second is a command
    assert err.startswith("error: ")
    assert said in err


def test_a_clip_of_train_in_test_is_refused(inside, folder):
    """As a manifest edited by hand may have it; its score would be no score."""
    file = folder / "noise" / "test.tsv"
    before = file.read_text()
    name = (folder / "noise" / "train.tsv").read_text().splitlines()[1]
    file.write_text(before.replace(before.splitlines()[1], name))
    status, _, err = inside("--task", "noise", "--out", "leaky")
    file.write_text(before)
    assert status == 1
    assert "is in train and in test: leakage" in err


def test_results_stay_in_their_folder(inside, folder):
    file = folder / "noise" / "task.json"
    before = file.read_text()
    file.write_text(before.replace('"name": "noise"', '"name": "../noise"'))
    status, _, err = inside("--task", "noise")
    file.write_text(before)
    assert status == 1
    assert "noise/task.json: '../noise': no name for the folder" in err


def test_a_missing_checkpoint_is_named(inside):
    status, _, err = inside("--task", "pitch", upstream="nowhere.pt")
    assert status == 1
    assert len(err.splitlines()) <= 2  # the second is a command
    assert "nowhere.pt" in err


def test_a_wrong_encoder_is_named_before_another_is_probed(inside):
    others = ("--upstream", "mfcc", "random:nowhere.pt")
    status, _, err = inside("--task", "pitch", "--out", "later", *others)
    assert status == 1
    assert "error: nowhere.pt: no such checkpoint" in err
    assert not Path("later").exists()


def test_the_package_lists_its_commands(capsys):
    assert main(["--help"]) == 0
    out = capsys.readouterr().out
    assert all(f"\n  {name} " in out for name in COMMANDS)
    assert main(["prob"]) == 2
    assert "no command 'prob'; there are: label, probe" in capsys.readouterr().err
    with pytest.raises(SystemExit) as ended:
        main(["report", "--help"])
    assert ended.value.code == 0
