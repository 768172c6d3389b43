"""The first errors of a new user end in at most three lines, the last a command that works."""

import contextlib
import shlex
import sys
import traceback
from pathlib import Path

import numpy as np
import pytest
from hydra.errors import ConfigCompositionException
from omegaconf.errors import ValidationError

from hydra_plugins import _music_ssl_fairseq_choice as choice
from hydra_plugins import _music_ssl_fairseq_folder as folder
from hydra_plugins import _music_ssl_fairseq_refusals as refusals
from manifests_tools.__main__ import main as manifests_tools
from music_ssl_fairseq import compat, upstream
from music_ssl_fairseq.__main__ import main as music_ssl_fairseq
from music_ssl_fairseq.data.units import UnitDictionary
from music_ssl_fairseq.errors import InputError
from music_ssl_fairseq.label.kmeans import check_enough
from tests import EXAMPLES, checkpoints, tiny
from tests.audio_files import write_tone
from tests.test_page_commands import check


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch):
    """A folder with music, and one with other files."""
    monkeypatch.chdir(tmp_path)
    for i in range(3):
        write_tone(Path("music", f"{i}.m4a"), 1.0, 16_000, seed=i)
    Path("notes").mkdir()
    Path("notes", "a.txt").touch()


def run(program, *words: str) -> None:
    """Run a command in this process, as a user types it."""
    module = program.__module__.removesuffix(".__main__")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "orig_argv", ["python", "-m", module, *words])
        with contextlib.suppress(SystemExit):
            assert program(list(words)) != 0


def last(capsys) -> str:
    """The command that the error ends with, which parses; at most two lines are before it."""
    lines = [x for x in capsys.readouterr().err.splitlines() if not x.startswith("\r")]
    begin = next(i for i, line in enumerate(lines) if line.startswith("error: "))
    assert len(lines[begin:]) <= 3
    words = shlex.split(lines[-1])
    if words[0] == "ls":
        assert Path(words[1]).is_dir()
    elif words[0] != "find":
        check(words, Path("this error"))
    return lines[-1]


def test_a_misspelt_music_folder(capsys):
    run(manifests_tools, "pretrain", "--root", "musik")
    assert last(capsys) == f"python -m manifests_tools pretrain --root {Path('music').absolute()}"
    run(music_ssl_fairseq, "map", "musik", "--checkpoint", "mfcc")
    assert last(capsys) == "python -m music_ssl_fairseq map music --checkpoint mfcc"
    run(manifests_tools, "pretrain", "--root", "/nowhere/at/all")
    assert last(capsys) == "ls /"


def test_a_folder_without_audio(capsys):
    run(manifests_tools, "pretrain", "--root", "notes")
    assert last(capsys) == f"find {Path('notes').absolute()} -type f"


def test_a_folder_of_m4a_is_no_error(capsys):
    assert manifests_tools(["pretrain", "--root", "music", "--workers", "1"]) == 0
    assert "train: 2 tracks" in capsys.readouterr().out


def test_labels_before_manifests(capsys):
    run(music_ssl_fairseq, "label", "--k", "500")
    assert last(capsys) == "python -m manifests_tools pretrain --root music"


def test_training_before_labels():
    with pytest.raises(InputError) as error:
        UnitDictionary("labels/dict.km.txt")
    assert error.value.lines.splitlines()[1] == "python -m music_ssl_fairseq.label --k 500"


def test_more_clusters_than_frames(monkeypatch):
    words = ["python", "-m", "music_ssl_fairseq", "label", "--k=5000", "--seed", "2"]
    monkeypatch.setattr(sys, "orig_argv", words)
    with pytest.raises(InputError) as error:
        check_enough(1640, 5000)
    command = error.value.lines.splitlines()[1]
    assert command == "python -m music_ssl_fairseq label --k=42 --seed 2"


def test_a_stereo_array(tmp_path):
    path = checkpoints.write(tmp_path / "x.pt", "music_hubert", tiny.music_hubert())
    model, waveform = upstream.load(path), np.zeros((2, 16_000), np.float32)
    with pytest.raises(InputError, match=r"shape \(2, 16000\).*channels=") as error:
        model.features(waveform)
    message = "".join(traceback.format_exception_only(error.value)).splitlines()
    assert len(message) == 2
    assert message[1] == (
        'model.features(waveform, sample_rate=44100, channels="first")  # or its own rate'
    )
    assert len(eval(message[1]).times) == 17
    for shape, rate, right in (
        ((44_100, 2), 44_100, 'waveform, sample_rate=44100, channels="last")'),
        ((4, 2, 44_100), 44_100, 'list(waveform), sample_rate=44100, channels="first")'),
        ((16_000,), None, "waveform, sample_rate=44100)  # or its own rate"),
    ):
        with pytest.raises(InputError) as error:
            model.features(np.zeros(shape, np.float32), rate)
        assert error.value.__notes__ == [f"model.features({right}"]


@pytest.mark.parametrize(
    ("words", "command"),
    [
        (["probe", "--upstream", "mfcc", "--task", "x"], "python -m manifests_tools --help"),
        (["probe", "--upstream", "mfcc"], "python -m music_ssl_fairseq.probe --help"),
        (["report", "run"], "ls ."),
        (["report", "music"], "python -m music_ssl_fairseq probe --help"),
        (["train"], "python -m music_ssl_fairseq --help"),
    ],
)
def test_a_missing_step_or_word(words, command, capsys):
    run(music_ssl_fairseq, *words)
    assert last(capsys) == command


@pytest.mark.parametrize("words", [["gtzan"], ["custom", "--csv", "my.csv", "--kind", "key"]])
def test_a_data_set_that_is_not_there(words, capsys):
    run(manifests_tools, *words)
    last(capsys)


def test_a_checkpoint_that_is_not_there():
    with pytest.raises(InputError) as error:
        upstream.load("musik/x.pt")
    assert error.value.lines.splitlines()[1] == "ls ."
    from fairseq import checkpoint_utils

    assert compat.is_training_command() is False
    with pytest.raises(InputError, match=r"^runs/x\.pt: no such file"):
        checkpoint_utils.load_model_ensemble_and_task(["runs/x.pt"])


class TestSettings:
    """Of fairseq-hydra-train."""

    options = ("--config-dir", str(EXAMPLES / "music_hubert"), "--config-name")

    def refused(self, capsys, call, *words: str) -> str:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys, "argv", ["fairseq-hydra-train", *self.options, *words])
            with pytest.raises(SystemExit):
                call()
        return last(capsys)

    @pytest.mark.parametrize(
        ("given", "end"),
        [
            ("model.dropot=0.2", " model.dropout=0.2"),
            ("zzz.qqq=1", "--config-name short --cfg job"),
        ],
    )
    def test_a_misspelt_setting(self, capsys, given, end):
        def fail(*_):
            raise ConfigCompositionException(f"Could not override '{given.partition('=')[0]}'.")

        call = lambda: refusals._compose(None, fail)  # noqa: E731
        assert self.refused(capsys, call, "short", given).endswith(end)

    def test_a_value_of_another_type(self, capsys):
        def fail(_):
            error = ValidationError("Value 'x' of type 'str' could not be converted to Float")
            error.full_key = "dropout"
            raise error

        call = lambda: refusals._add_defaults(fail, None)  # noqa: E731
        found = self.refused(capsys, call, "short", "model.dropout=x", "task.crop_seconds=4")
        assert found.endswith("--config-name short task.crop_seconds=4")

    @pytest.mark.parametrize(
        ("words", "end"),
        [
            ("", "examples/music_hubert --config-name short"),
            ("--config-name mask_prob_05", "examples/music2vec --config-name mask_prob_050"),
            ("--config-dir examples/music2vek", "examples/music2vec"),
            (
                "--config-dir=OURS --config-name shrt task.data=x",
                "OURS --config-name short task.data=x",
            ),
            (
                "--config-dir OURS/tiny.yaml task.data=x",
                "--config-dir OURS --config-name tiny task.data=x",
            ),
            ("--config-name OURS/tiny", "--config-dir OURS --config-name tiny"),
            ("--config-dir notes -m", "examples/music_hubert -m"),
            ("--config_dir OURS", " --config-dir OURS"),
            ("model.upstream=mfcc", "examples/probing model.upstream=mfcc"),
        ],
    )
    def test_no_such_configuration(self, words, end, capsys, monkeypatch):
        monkeypatch.setattr(choice.os, "_exit", sys.exit)
        words, end = (text.replace("OURS", self.options[1]) for text in (words, end))
        with pytest.raises(SystemExit, match="1"):
            folder.begin_quietly(["fairseq-hydra-train", *words.split()])
        assert last(capsys).endswith(end)

    @pytest.mark.parametrize(
        "words",
        ["task=translation", "--config-dir notes task=translation", "--config-path x", "--help"],
    )
    def test_commands_of_other_projects_pass(self, words):
        choice.check_choice(["fairseq-hydra-train", *words.split()])
