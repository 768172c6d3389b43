"""The first errors of a new user end in at most three lines, the last a command that works."""

import contextlib
import errno
import json
import logging
import shlex
import shutil
import signal
import subprocess
import sys
import time
import traceback
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace

import hydra
import numpy as np
import pytest
from hydra.errors import ConfigCompositionException
from omegaconf import OmegaConf
from omegaconf.errors import ValidationError

from hydra_plugins import _music_ssl_fairseq_choice as choice
from hydra_plugins import _music_ssl_fairseq_folder as folder
from hydra_plugins import _music_ssl_fairseq_refusals as refusals
from manifests_tools.__main__ import main as manifests_tools
from music_ssl_fairseq import compat, upstream
from music_ssl_fairseq.__main__ import COMMANDS
from music_ssl_fairseq.__main__ import main as music_ssl_fairseq
from music_ssl_fairseq.cli import exit_status
from music_ssl_fairseq.data.manifest import Manifest
from music_ssl_fairseq.data.units import UnitDictionary
from music_ssl_fairseq.errors import InputError
from music_ssl_fairseq.features import FeatureSpec
from music_ssl_fairseq.label.kmeans import check_enough
from music_ssl_fairseq.runtime import user_command
from tests import EXAMPLES, checkpoints, tiny
from tests.audio_files import write_tone
from tests.test_page_commands import check


@pytest.fixture(scope="module")
def songs(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("songs")
    for i in range(3):
        write_tone(folder / f"{i}.m4a", 1.0, 16_000, seed=i)
    return folder


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch, songs):
    """A folder with music, and one with other files."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(songs, "music")
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
    elif words[0] not in ("find", "ffmpeg") and words[2] != "zipfile":
        check(words, Path("this error"))
    return lines[-1]


def test_a_python_without_the_packages_requirements(capsys, monkeypatch):
    monkeypatch.setitem(COMMANDS, "map", ("not_installed.anything", "a map"))
    assert music_ssl_fairseq(["map", "songs"]) == 1
    error, command = capsys.readouterr().err.splitlines()
    assert error == f"error: {sys.executable} has no package not_installed; run"
    assert command.startswith("pip install -e ")
    monkeypatch.setitem(COMMANDS, "map", ("music_ssl_fairseq.no_such_module", "a mistake of ours"))
    with pytest.raises(ModuleNotFoundError):
        music_ssl_fairseq(["map", "songs"])


def test_a_misspelt_music_folder(capsys):
    run(manifests_tools, "pretrain", "--root", "musik")
    assert last(capsys) == f"python -m manifests_tools pretrain --root {Path('music').absolute()}"
    run(music_ssl_fairseq, "map", "musik", "--upstream", "mfcc")
    assert last(capsys) == "python -m music_ssl_fairseq map music --upstream mfcc"
    Path("manifests").mkdir()
    Path("manifests", "train.tsv").touch()
    run(manifests_tools, "pretrain", "--root", "/nowhere/at/all")
    assert last(capsys) == "ls /"


def test_a_folder_without_audio(capsys):
    run(manifests_tools, "pretrain", "--root", "notes")
    assert last(capsys) == f"find {Path('notes').absolute()} -type f"


def test_a_folder_of_m4a_is_no_error(capsys):
    assert manifests_tools(["pretrain", "--root", "music", "--workers", "1"]) == 0
    assert "train: 2 tracks" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("file", "end"),
    [
        ("notes/Tanz & Ton.zip", "python -m zipfile -e {file} {folder}"),
        ("notes/a.mp4", "ffmpeg -i {file} {stem}.flac"),
    ],
)
def test_a_folder_of_archives_or_videos(file, end, capsys):
    path = Path(file).absolute()
    path.touch()
    run(manifests_tools, "pretrain", "--root", "notes")
    words = {"file": path, "folder": path.parent, "stem": path.with_suffix("")}
    quoted = {name: shlex.quote(str(value)) for name, value in words.items()}
    assert last(capsys) == end.format(**quoted)


def test_an_empty_folder(capsys):
    Path("empty").mkdir()
    run(manifests_tools, "pretrain", "--root", "empty")
    assert last(capsys) == f"ls {Path().absolute()}"


@pytest.mark.parametrize(
    ("program", "words", "command"),
    [
        (manifests_tools, "pretrain music", "pretrain --root music"),
        (manifests_tools, "pretrain --rot music", "pretrain --root music"),
        (manifests_tools, "pretrain --root my music", "pretrain --root 'my music'"),
        (manifests_tools, "pretrain --root -x", "pretrain --root ./-x"),
        (manifests_tools, "pretrian --root music", "pretrain --root music"),
        (manifests_tools, "pretrain --root music/0.m4a", "pretrain --root HERE/music"),
        (manifests_tools, "custom --csv x --kind multiclass", "custom --csv x --kind multi-class"),
        (music_ssl_fairseq, "lable --k 20", "label --k 20"),
        (music_ssl_fairseq, "map music", "map music --upstream mfcc"),
        (music_ssl_fairseq, "map music --upstream mfc+chrome",
         "map music --upstream mfcc+chroma"),
        (manifests_tools, "fetch GTZAN-Genre", "fetch gtzan-genre"),
        (music_ssl_fairseq, "map music mfcc", "map music --upstream mfcc"),
        (music_ssl_fairseq, "map --upstream mfcc", "map music --upstream mfcc"),
        (music_ssl_fairseq, "probe --upstream mfcc music", "probe --upstream mfcc --task music"),
        (manifests_tools, "pretrain --root music --convert music/a",
         "pretrain --root music --convert music_copies-2"),
        (manifests_tools, "pretrain --root music --speeds 0.9",
         "pretrain --root music --speeds 0.9 --convert music_copies-2"),
        (manifests_tools, "pretrain --root music --labels a",
         "pretrain --root music --labels a --shards shards-2"),
        (manifests_tools, "pretrain --root music --shards a --convert b",
         "pretrain --root music --convert b"),
        (manifests_tools, "check music", "pretrain --root music"),
        (music_ssl_fairseq, "export --checkpoint a.pt --out b", "export --checkpoint a.pt --to b"),
        (music_ssl_fairseq, "export", "export --help"),
        (music_ssl_fairseq, "extract --checkpoint mfcc --manifest a --out b", "extract --help"),
        (music_ssl_fairseq, "extract --checkpoint a.pt",
         "extract --checkpoint a.pt --manifest manifests/train.tsv --out features/train"),
    ],
)  # fmt: skip
def test_a_misspelt_command(program, words, command, capsys):
    Path("my music").mkdir()
    Path("-x").mkdir()
    run(program, *words.split())
    found = last(capsys)
    module = program.__module__.removesuffix(".__main__")
    assert found == f"python -m {module} {command}".replace("HERE", str(Path().absolute()))


@pytest.mark.parametrize(
    ("text", "command"),
    [
        ("path,genre,split\na,b,train\n", "sed -i '1s/genre/label/' my.csv"),
        ("a,b,train\n", "sed -i '1i path,label,split' my.csv"),
        ("Path;Label;Split\na;b;train\n", "sed -i '1s/.*/path;label;split/' my.csv"),
        ("a\tb\ttrain\n", r"sed -i '1i path\tlabel\tsplit' my.csv"),
        ("path,label,fold\na,b,1\n", "sed -i '1s/fold/split/' my.csv"),
        ("file,genre\na,b\n", "head -n 3 my.csv"),
        ("a.mp3,b\n", "sed -i '1i path,label' my.csv"),
        ("sep=;\nPath;Label\na;b\n", "sed -i 1d my.csv"),
        ("PK\3\4\0", "ls -l my.csv"),
        ("path,label,start,stop\na,b,0:10,0:20\n", "sed -n 2p my.csv"),
        ("path,label,split\nä,b,train\n", "iconv -f CP1252 -t UTF-8 my.csv -o my.utf8.csv"),
    ],
)
def test_a_wrong_table(text, command, capsys):
    Path("my.csv").write_text(text, encoding="latin-1")
    run(manifests_tools, "custom", "--csv", "my.csv", "--kind", "multi-class")
    assert capsys.readouterr().err.splitlines()[1:] == [command]


@pytest.mark.parametrize(
    ("kind", "text", "command"),
    [
        ("multi-class", "path,label,split\na,b,train\nc,b,train\n", "head -n 3 my.csv"),
        ("multi-label", "path,label,split\na,b,train\nc,b,train\n", "head -n 3 my.csv"),
        ("key", "path,label,split\na,C major,train\nb,C major,train\n", "head -n 3 my.csv"),
        ("regression", "path,label,split\na,1,train\nb,x,valid\n", "sed -n 3p my.csv"),
    ],
)
def test_labels_that_cannot_be_learnt(kind, text, command, capsys):
    Path("my.csv").write_text(text)
    run(manifests_tools, "custom", "--csv", "my.csv", "--kind", kind)
    assert capsys.readouterr().err.splitlines()[1:] == [command]


@pytest.fixture
def damaged(place) -> Path:
    """The best checkpoint of a run, cut; its last one is whole."""
    folder = Path("runs/music_hubert/short/checkpoints")
    best = checkpoints.write(folder / "checkpoint_best.pt", "music_hubert", tiny.music_hubert())
    shutil.copy(best, folder / "checkpoint_last.pt")
    best.write_bytes(best.read_bytes()[:2000])
    return best


def test_a_damaged_checkpoint(damaged, capsys):
    last_one = damaged.with_name("checkpoint_last.pt")
    for given in (damaged, damaged.parents[1]):
        run(music_ssl_fairseq, "map", "music", f"--upstream={given}")
        assert last(capsys).endswith(f" map music --upstream={last_one}")
    last_one.unlink()
    run(music_ssl_fairseq, "map", "music", "--upstream", str(damaged))
    assert capsys.readouterr().err.splitlines()[-1] == f"ls -l {damaged}"


def test_layers_of_a_model(damaged, capsys):
    assert manifests_tools(["pretrain", "--root", "music", "--workers", "1"]) == 0
    label = ["label", "--features", "deep"]
    run(music_ssl_fairseq, *label, "--layer", "1")
    assert last(capsys).endswith(
        " label --features deep --layer 1 --checkpoint runs/music_hubert/short"
    )
    shutil.copy(damaged.with_name("checkpoint_last.pt"), damaged)
    run(music_ssl_fairseq, *label)
    end = " --checkpoint runs/music_hubert/short --layer 1"
    assert last(capsys).endswith(f" label --features deep{end}")
    run(music_ssl_fairseq, *label, "--layer", "nine")
    assert last(capsys).endswith("label --features deep --layer=1")
    run(music_ssl_fairseq, "map", "music", "--upstream", str(damaged), "--layer=12")
    assert last(capsys).endswith(" --layer=3")
    shutil.rmtree("runs")
    run(music_ssl_fairseq, *label, "--layer", "1")
    assert last(capsys).endswith(" label --features mfcc")


def test_music_that_moved(capsys):
    assert manifests_tools(["pretrain", "--root", "music", "--workers", "1"]) == 0
    Path("music").rename("music2")
    capsys.readouterr()
    run(music_ssl_fairseq, "label", "--k", "20")
    command = capsys.readouterr().err.splitlines()[-1]
    assert command == f"sed -i '1s|.*|{Path('music2').absolute()}|' manifests/*.tsv"
    subprocess.run(command, shell=True, check=True)
    Manifest("manifests/valid.tsv").require_root()
    with pytest.raises(InputError, match="manifests: a folder"):
        Manifest("manifests")


def test_labels_before_manifests(capsys):
    run(music_ssl_fairseq, "label", "--k", "500")
    assert last(capsys) == "python -m manifests_tools pretrain --root music"


@pytest.mark.parametrize(
    ("given", "right"),
    [("MFCC", "mfcc"), ("mfcc+cqr", "mfcc+cqt"), ("wav2vec", "mfcc"), ("cqt+deep", "cqt")],
)
def test_misspelt_features(given, right, monkeypatch):
    command = ["python", "-m", "music_ssl_fairseq", "label", "--features"]
    monkeypatch.setattr(sys, "orig_argv", [*command, given])
    with pytest.raises(InputError) as error:
        FeatureSpec(given)
    assert error.value.lines.splitlines()[1] == " ".join([*command, right])


def test_training_before_labels():
    with pytest.raises(InputError) as error:
        UnitDictionary("labels/dict.km.txt")
    assert error.value.lines.splitlines()[1] == "python -m music_ssl_fairseq label --k 500"


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
        (
            ["probe", "--upstream", "mfcc", "--task", "my.csv"],
            "python -m manifests_tools custom --kind multi-class --csv my.csv --out probing/my",
        ),
        (["probe", "--upstream", "mfcc"], "python -m music_ssl_fairseq probe --help"),
        (
            ["map", "music", "--upstream", "mfcc", "--out", "notes"],
            "python -m music_ssl_fairseq map music --upstream mfcc --out notes/song_map.html",
        ),
        (["report", "run"], "ls ."),
        (["report", "music"], "python -m music_ssl_fairseq probe --help"),
        (["report", "notez"], "python -m music_ssl_fairseq report notes"),
        (["map", "music", "--upstream", "a.pt"], "ls ."),
        (
            ["map", "music", "--upstream", "m-a-p/MERT-v1-95M"],
            "python -m music_ssl_fairseq map music --upstream hf:m-a-p/MERT-v1-95M",
        ),
        (
            ["extract", "--checkpoint", "a.pt", "--manifest", "music", "--out", "b"],
            "python -m manifests_tools pretrain --root music",
        ),
        (
            ["map", "music", "--upstream", "nots/b.txt"],
            "python -m music_ssl_fairseq map music --upstream notes/a.txt",
        ),
        (
            ["map", "music", "--upstream", "https://huggingface.co/a/b/tree/main"],
            "python -m music_ssl_fairseq map music --upstream hf:a/b",
        ),
        (
            ["map", "music", "--upstream", "mfcc", "--layer", "3"],
            "python -m music_ssl_fairseq map music --upstream mfcc",
        ),
        (
            ["map", "music", "--upstream", "hf:a"],
            "python -m music_ssl_fairseq map music --upstream mfcc",
        ),
        (
            ["map", "music", "--upstream", "mfcc", "--out", "new/"],
            "python -m music_ssl_fairseq map music --upstream mfcc --out new/song_map.html",
        ),
        (["probe", "--upstream", "a.pt", "mfcc"], "python -m music_ssl_fairseq probe --help"),
        (["pretrain", "--root", "music"], "python -m manifests_tools pretrain --root music"),
        (
            ["train"],
            f"fairseq-hydra-train --config-dir {EXAMPLES}/music_hubert --config-name short",
        ),
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


def test_ctrl_c_waits_for_the_end_of_an_import(monkeypatch, capsys):
    Path("slow_module.py").write_text("import os\nos.kill(os.getpid(), 2)\nwhole = True\n")
    monkeypatch.syspath_prepend(".")

    def work() -> None:
        assert import_module("slow_module").whole
        time.sleep(10)

    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        assert exit_status(work, "x") == 130
    finally:
        signal.signal(signal.SIGINT, before)
    assert capsys.readouterr().err.startswith("interrupted; to continue, run\n")


def test_the_current_folder_was_removed(tmp_path, monkeypatch, capsys):
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    assert exit_status(lambda: None, "x") == 1
    assert capsys.readouterr().err == "error: the current folder was removed: go to another\ncd\n"


def test_validation_without_a_batch_size(monkeypatch):
    monkeypatch.setattr(sys, "orig_argv", ["python", "/bin/fairseq-validate", "manifests"])
    monkeypatch.setattr(sys, "argv", ["/bin/fairseq-validate", "manifests"])
    command = SimpleNamespace(main=lambda cfg: "validated")
    compat.patch_validation(command)
    size = SimpleNamespace(max_tokens=None, batch_size=2)
    assert command.main(SimpleNamespace(dataset=size)) == "validated"
    size.batch_size = None
    with pytest.raises(SystemExit) as error:
        command.main(SimpleNamespace(dataset=size))
    assert str(error.value).splitlines()[1] == "fairseq-validate manifests --batch-size 8"


@pytest.mark.parametrize(
    ("words", "missing", "end"),
    [
        ("manifests", "--task and --user-dir", "--task music2vec_pretraining --batch-size 8"),
        ("gtzan --task=music_probing --batch-size 2", "--user-dir", "--user-dir music_ssl_fairseq"),
        ("gtzan --user-dir=x --max-tokens 9", "--task", "--task music_probing"),
    ],
)
def test_validation_without_a_task(words, missing, end, capsys, monkeypatch):
    Path("my run/.hydra").mkdir(parents=True)
    Path("my run/.hydra/config.yaml").write_text("x: 1\ntask:\n  _name: music2vec_pretraining\n")
    Path("gtzan").mkdir()
    Path("gtzan/task.json").touch()
    monkeypatch.setattr(choice.os, "_exit", sys.exit)
    command = ["fairseq-validate", *words.split(), "--path", "my run/checkpoints/best.pt"]
    with pytest.raises(SystemExit, match="1"):
        folder.prepare_command(command)
    message, right = capsys.readouterr().err.splitlines()
    assert message == f"error: {missing} missing"
    assert right.startswith(shlex.join(command))
    assert right.endswith(end)
    choice.check_validation(shlex.split(right))
    choice.check_validation(["fairseq-validate", "data-bin", "--task", "translation"])


def test_training_with_the_command_of_fairseq(capsys, monkeypatch):
    monkeypatch.setattr(choice.os, "_exit", sys.exit)
    for task, family in (
        ("music2vec_pretraining", "music2vec --config-name short"),
        ("music_probing", "probing"),
    ):
        with pytest.raises(SystemExit, match="1"):
            folder.prepare_command(["/bin/fairseq-train", "data", "--task", task])
        assert last(capsys).endswith(f"/examples/{family}")
    folder.prepare_command(["fairseq-train", "data", "--task", "translation"])
    folder.prepare_command(["fairseq-train", "data", "--task=music_probing", "--user-dir=x"])


@pytest.mark.parametrize(
    ("message", "command"),
    [
        ("http://x:1/a b.tar: gone", "curl -I 'http://x:1/a b.tar'"),
        ("http://x:1/a.tar:512:99: no such file", "curl -I http://x:1/a.tar"),
        ("s3://x/a.tar: gone", ""),
        ("torch is old: run `pip install x`", "pip install x"),
        ("x needs ranges, which `python -m http.server` does not have", ""),
        ("--window 2: windows need 6 seconds or more", ""),
        ("music: has no such file", "ls music"),
    ],
)
def test_a_command_only_where_it_helps(message, command):
    assert user_command.with_command(message) == f"{message}\n{command}".rstrip()


class TestSettings:
    """Of fairseq-hydra-train."""

    options = ("--config-dir", str(EXAMPLES / "music_hubert"), "--config-name")

    def refused(self, capsys, call, *words: str) -> str:
        with pytest.MonkeyPatch.context() as patch:
            for name in ("argv", "orig_argv"):
                patch.setattr(sys, name, ["fairseq-hydra-train", *self.options, *words])
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
        ("given", "end"),
        [
            ("model.mask_prob=0.5,0.65", " -m model.mask_prob=0.5,0.65 common.seed=2"),
            ("optimization.lr=0.1,0.2", " -m 'optimization.lr=[0.1],[0.2]' common.seed=2"),
            ("task.label_dir=a,b", "--config-name short common.seed=2 'task.label_dir=[a,b]'"),
            ("dataset.valid_subset=a,b", """common.seed=2 'dataset.valid_subset="a,b"'"""),
            ("~model.nothing", "--config-name short common.seed=2"),
            ("+model.mask_prob=0.5", "--config-name short common.seed=2"),
        ],
    )
    def test_a_setting_that_hydra_refuses(self, capsys, given, end):
        config = {"model": {"mask_prob": 0.8}, "optimization": {"lr": [1]}}
        config["dataset"] = {"valid_subset": "valid"}
        Path("config.yaml").write_text(json.dumps(config))

        def compose(*_):
            with hydra.initialize_config_dir(str(Path().absolute()), version_base="1.1"):
                hydra.compose("config", [given])

        call = lambda: refusals._compose(None, compose)  # noqa: E731
        assert self.refused(capsys, call, "short", given, "common.seed=2").endswith(end)

    def test_a_new_setting_that_fairseq_lacks(self, capsys):
        config = OmegaConf.create({"optimization": {"max_updat": 1}, "mine": {"x": 1}})
        call = lambda: refusals._add_defaults(lambda _: None, config)  # noqa: E731
        found = self.refused(capsys, call, "short", "+optimization.max_updat=1", "task.data=x")
        assert found.endswith("--config-name short task.data=x")

    @pytest.mark.parametrize("given", ["common.seed=-1", "dataset.batch_size=null"])
    def test_a_value_that_fairseq_asserts(self, capsys, given):
        config = OmegaConf.create({"common": {"seed": 1}, "dataset": {"batch_size": 2}})
        config.dataset.max_tokens = None
        config.merge_with_dotlist([given])
        call = lambda: refusals._add_defaults(lambda _: None, config, is_checked=True)  # noqa: E731
        found = self.refused(capsys, call, "short", given, "task.data=x")
        assert found.endswith("--config-name short task.data=x")

    @pytest.mark.parametrize(
        ("given", "end"),
        [
            (["task.data=Ä (1)"], """ 'task.data="Ä (1)"'"""),
            (["task.data=my", "music"], """ 'task.data="my music"'"""),
            (["seed"], " short"),
        ],
    )
    def test_a_word_that_hydra_cannot_read(self, capsys, given, end):
        Path("my music").mkdir()
        call = lambda: refusals._refuse_a_word("no")  # noqa: E731
        found = self.refused(capsys, call, "short", *given)
        assert found.endswith(end)

    def test_a_number_for_a_list(self, capsys):
        error = ValidationError("float is not a ListConfig, list or tuple.")
        error.full_key = "optimization.lr"
        call = lambda: refusals._refuse_a_number_for_a_list(error)  # noqa: E731
        found = self.refused(capsys, call, "short", "optimization.lr=0.1")
        assert found.endswith(" 'optimization.lr=[0.1]'")

    def test_a_run_folder_that_cannot_be_made(self, capsys):
        Path("file").touch()
        given = "hydra.run.dir=file/run"
        found = self.refused(capsys, lambda: refusals.refuse_run_folder("file/run"), "short", given)
        assert found.endswith(f" hydra.run.dir={Path.home()}/runs/run")

    @pytest.mark.parametrize("name", ["fp16", "bf16"])
    def test_a_setting_for_gpus(self, capsys, name):
        config = OmegaConf.create({"common": {name: True}})
        call = lambda: refusals.refuse_gpu_settings(config)  # noqa: E731
        found = self.refused(capsys, call, "short", f"common.{name}=true", "task.data=x")
        assert found.endswith(" short task.data=x")

    def test_an_unexpected_error_goes_to_the_log(self, capsys, monkeypatch):
        root = logging.Logger("root")
        root.addHandler(logging.FileHandler("train.log"))
        monkeypatch.setattr(logging, "getLogger", lambda *_: root)
        monkeypatch.delenv("HYDRA_FULL_ERROR", raising=False)
        with pytest.raises(SystemExit):
            refusals.end_failed(ValueError("Invalid learning rate: -1.0"))
        lines = capsys.readouterr().err.splitlines()
        assert lines[0].startswith("error: ValueError: Invalid learning rate: -1.0; ")
        assert lines[1] == "tail -n 40 train.log"
        assert Path("train.log").read_text().startswith("ValueError: Invalid")
        with pytest.raises(SystemExit):  # omegaconf's last line says nothing
            refusals.end_failed(KeyError("Missing key lr\n    object_type=dict"))
        assert "Missing key lr" in capsys.readouterr().err
        with pytest.raises(SystemExit, match=r"^error: labels: damaged$"):  # not unexpected
            refusals.end_failed(InputError("labels: damaged"))
        with pytest.raises(SystemExit):  # a full disk has no room for a traceback
            refusals.end_failed(OSError(errno.ENOSPC, "No space left on device"))
        assert capsys.readouterr().err == "error: .: No space left on device\ndf -h .\n"

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
            ("--config-dir OURS --config-name OURS/tiny", "--config-dir OURS --config-name tiny"),
            ("--config-dir OURS --config-name top_12", "music2vec --config-name top_12"),
            ("--config-dir notes -m", "examples/music_hubert -m"),
            ("--config-dir mine --config-name tinny", "--config-dir mine --config-name tiny"),
            ("--config_dir OURS", " --config-dir OURS"),
            ("--config-dir OURS --lr 0.1 -m", "--config-dir OURS 'optimization.lr=[0.1]' -m"),
            ("--config-dir OURS --max-update=5", "--config-dir OURS optimization.max_update=5"),
            ("model.upstream=mfcc", "examples/probing model.upstream=mfcc"),
        ],
    )
    def test_no_such_configuration(self, words, end, capsys, monkeypatch):
        Path("mine").symlink_to(self.options[1])
        monkeypatch.setattr(choice.os, "_exit", sys.exit)
        words, end = (text.replace("OURS", self.options[1]) for text in (words, end))
        with pytest.raises(SystemExit, match="1"):
            folder.prepare_command(["fairseq-hydra-train", *words.split()])
        assert last(capsys).endswith(end)

    def test_configurations_of_a_package_without_its_clone(self, capsys, monkeypatch):
        monkeypatch.setattr(choice.os, "_exit", sys.exit)
        monkeypatch.setattr(choice, "example", lambda family: f"examples/{family}")
        with pytest.raises(SystemExit, match="1"):
            choice.check_choice(["fairseq-hydra-train", "--config-dir", "examples/music2vec"])
        assert "no such folder; the configurations are in examples/" in capsys.readouterr().err

    @pytest.mark.parametrize("base", ["tiny", "config"])
    def test_a_file_of_ones_own_needs_what_it_builds_on(self, base, tmp_path, capsys, monkeypatch):
        monkeypatch.setattr(choice.os, "_exit", sys.exit)
        mine, words = tmp_path / "mine.yaml", ["--config-dir", str(tmp_path), "--config-name=mine"]
        mine.write_text(f"defaults:\n  - {base}\n  - _self_\ntask:\n  _name: other\n")
        if base == "config":  # fairseq has one, too: that of another project passes
            choice.check_choice(["fairseq-hydra-train", *words])
            mine.write_text(mine.read_text().replace("other", "music_hubert_pretraining"))
        with pytest.raises(SystemExit, match="1"):
            choice.check_choice(["fairseq-hydra-train", *words])
        subprocess.run(last(capsys), shell=True, check=True)
        choice.check_choice(["fairseq-hydra-train", *words])
        assert (tmp_path / "short.yaml").is_symlink()

    @pytest.mark.parametrize(
        "words",
        ["task=translation", "--config-dir notes task=translation", "--config-path x", "--help"],
    )
    def test_commands_of_other_projects_pass(self, words):
        choice.check_choice(["fairseq-hydra-train", *words.split()])


def test_settings_may_stand_between_options():
    words = [
        "fairseq-hydra-train",
        "a.b=1",
        "--config-dir",
        "x=y",
        "-m",
        "+c=1,2",
        "--config-name=z",
    ]
    folder.put_settings_last(words)
    assert words[1:] == ["--config-dir", "x=y", "-m", "--config-name=z", "a.b=1", "+c=1,2"]


@pytest.mark.parametrize(
    ("given", "quoted"),
    [
        ("a.b=[(16,10,5)]+[(16,2,2)]*4", 'a.b="[(16,10,5)]+[(16,2,2)]*4"'),
        ("a.b=[/x/a (b),/x/c]", 'a.b=["/x/a (b)",/x/c]'),
        ("a.b=/x/{b}", 'a.b="/x/{b}"'),
        ("a.b=~/x", f"a.b={Path.home()}/x"),
    ],
)
def test_quotes_that_hydra_needs(given, quoted):
    from hydra.core.override_parser.overrides_parser import OverridesParser

    from hydra_plugins._music_ssl_fairseq_refusals import _quoted

    assert _quoted(given) == quoted
    assert OverridesParser.create().parse_override(quoted)
