"""A training prints numbers, lines of our own and warnings; the rest is in the log."""

import logging
import re
import sys
from itertools import accumulate
from types import SimpleNamespace

import pytest
import yaml

from hydra_plugins import _music_ssl_fairseq_console as module
from hydra_plugins._music_ssl_fairseq_folder import _end_quietly, prepare_command
from music_ssl_fairseq.training import narration
from tests import EXAMPLES

NUMBERS = (
    '{"valid_loss": "4.2", "valid_loss_m": "4.2", "valid_accuracy_m": "0.3", '
    '"valid_num_updates": "7"}'
)


def record(text, name="fairseq.trainer", level=logging.INFO, module="trainer", **extra):
    found = logging.makeLogRecord({"name": name, "levelno": level, "msg": text, "module": module})
    found.levelname = logging.getLevelName(level)
    vars(found).update(extra)
    return found


@pytest.fixture
def said(monkeypatch, capsys):
    """Print records, on a terminal or not, and return standard output and error."""

    def run(*records, terminal=False):
        monkeypatch.setattr(sys.stderr, "isatty", lambda: terminal, raising=False)
        console = module.Console(stream=sys.stdout)
        console.move(3, 10, "runs/x")
        for item in records:
            console.handle(item)
        console.close()
        return capsys.readouterr()

    return run


def test_numbers_are_json_lines(said):
    found = said(record(NUMBERS, "valid", module="progress_bar"))
    assert found.out == '{"log": "valid", ' + NUMBERS[1:] + "\n"
    assert found.err == ""


def test_a_terminal_has_a_bar_and_a_line_per_validation(said):
    inner = record('{"loss": "3.1", "wall": "9"}', "train_inner", module="progress_bar")
    found = said(inner, record(NUMBERS, "valid", module="progress_bar"), terminal=True)
    assert found.out == ""
    assert "runs/x:  30%" in found.err
    assert "\nvalid, update 7: loss 4.2, accuracy_m 0.3\n" in found.err.replace("\r", "\n")


def test_the_configuration_and_warnings_of_others_are_in_the_log_alone(said):
    hidden = [record("{'_name': None}"), record("old keyword", "py.warnings", logging.WARNING)]
    shown = [
        record("train: 3 tracks", console=True),
        record("no labels of a.flac", "music_ssl_fairseq.data", logging.WARNING),
        record("\t#1 : model.dropout=0", "hydra._internal.core_plugins.basic_launcher"),
    ]
    found = said(*hidden, *shown)
    lines = ["train: 3 tracks", "warning: no labels of a.flac", "#1 : model.dropout=0"]
    assert found.err.splitlines() == lines
    assert found.out == ""


@pytest.mark.parametrize("folder", ["music_hubert", "music2vec", "probing"])
def test_sweeps_print_as_runs_do(folder):
    logs = yaml.safe_load((EXAMPLES / folder / "run_folder.yaml").read_text())
    assert logs["hydra_logging"] == logs["job_logging"]


def test_what_comes_before_the_log_is_logged_later(tmp_path, monkeypatch):
    root = logging.Logger("root")
    monkeypatch.setattr(logging, "getLogger", lambda *_: root)
    monkeypatch.setattr(logging, "captureWarnings", lambda _: None)
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    prepare_command(["fairseq-hydra-train", "--config-dir", str(tmp_path), "task=translation"])
    assert root.handlers == []  # not a configuration of ours
    prepare_command(["fairseq-hydra-train", f"--config-dir={EXAMPLES / 'music2vec'}"])
    root.warning("deprecated")
    root.handlers = [logging.FileHandler(tmp_path / "log")]
    module.replay()
    assert (tmp_path / "log").read_text() == "deprecated\n"


def test_an_interrupt_during_imports_is_one_line(capsys):
    _end_quietly(KeyboardInterrupt, KeyboardInterrupt(), None)
    assert capsys.readouterr().err.startswith(
        "stopped by SIGINT: nothing was trained; to begin again, run\n"
    )


def test_the_command_that_fits_keeps_the_data(monkeypatch):
    options = ["--config-dir", "examples/music_hubert", "task.data=a b", "model.dropout=0"]
    monkeypatch.setattr(sys, "argv", ["/bin/fairseq-hydra-train", *options])
    assert narration._smaller_command() == (
        "fairseq-hydra-train --config-dir examples/music_hubert --config-name tiny 'task.data=a b'"
    )


@pytest.mark.parametrize(
    ("seconds", "line"),
    [
        ([40.0, 30.0] + [0.5] * 3, "0.5 s per update: about 47.5 s"),  # compiled first
        ([90.0, 20.0, 20.0, 20.0, 20.0], "20 s per update: about 31.7 min"),
    ],
)
def test_the_time_to_go_is_measured(monkeypatch, caplog, seconds, line):
    caplog.set_level(logging.INFO)
    now = iter(accumulate(seconds, initial=100.0))
    monkeypatch.setattr(narration.time, "monotonic", lambda: next(now))
    updates = iter(range(1, 100))
    found = narration.Narration()
    cfg = SimpleNamespace(optimization=SimpleNamespace(max_update=101))
    found._trainer = SimpleNamespace(get_num_updates=lambda: next(updates), cfg=cfg)
    found._times = []
    for _ in range(len(seconds) + 1):
        assert not caplog.messages
        found.update()
    assert caplog.messages == [f"{line} to go, without validation"]


def test_fairseq_s_help_names_our_models(monkeypatch, capsys):
    from fairseq_cli.hydra_train import cli_main

    monkeypatch.setattr(sys, "argv", ["fairseq-hydra-train", "--help"])
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    with pytest.raises(SystemExit):
        cli_main()
    out = capsys.readouterr().out
    assert "adds music2vec and musicHuBERT" in out
    assert re.search(r"\nmodel: .*\bhubert\b", out)  # and all that fairseq says
