"""examples/study: the table of rows, which row runs when, corpora, and a miniature end to end."""

import fcntl
import gzip
import importlib
import json
import os
import runpy
import signal
import subprocess
import sys
import time
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from music_ssl_fairseq.__main__ import main
from music_ssl_fairseq.errors import InputError
from tests import EXAMPLES
from tests.audio_files import write_tone
from tests.fairseq_commands import train

FOLDER = EXAMPLES / "study"
TRAINED = """
defaults: {audio_seconds: 40, seeds: [1], corpus: music}
families: {music_hubert: {config: short, overrides: {}}, music2vec: {config: short, overrides: {}}}
labels:
  mfcc: {features: mfcc, k: 20}
  deep: {features: deep, k: 20, layer: 3, checkpoint: first}
rows:
  second: {family: music_hubert, labels: [deep]}
  first: {family: music_hubert, labels: [mfcc], seeds: [1, 2]}
  third: {family: music2vec, init: first}
  floor: {encoder: mfcc}
  still: {random: first}
"""
OTHERS = ("floor", "second", "still", "third")


@pytest.fixture(scope="module", autouse=True)
def modules():
    """The folder's modules, as its scripts import them; nothing of them is left behind."""
    names = ("rows", "results", "places", "processes", "steps", "schedule", "study", "corpus")
    sys.path.insert(0, str(FOLDER))
    yield {name: importlib.import_module(name) for name in names}
    sys.path.remove(str(FOLDER))
    for name in (*names, "judge", "tasks", "table"):
        sys.modules.pop(name, None)


@pytest.fixture
def made(modules, tmp_path, monkeypatch):
    """Return a function that makes a study of TRAINED whose commands only leave their files.

    What was called is in its `said`. Rows are not judged, but their results are left.
    """
    monkeypatch.chdir(tmp_path)
    Path("rows.yaml").write_text(TRAINED)
    Path("music").mkdir()
    Path("judge").mkdir()
    for task in (task.name for task in modules["results"].open_tasks().TASKS):
        Path("judge", f"{task}.csv").write_text("path,label,split\n")

    def judge(steps, row, _gpu):
        steps.said.append(f"judge {row.id}")
        steps.places.results.mkdir(exist_ok=True)
        made_of = steps.places.made_of(row)
        about = {**made_of.pop("row"), "made_of": made_of}
        (steps.places.results / f"{row.id}.json").write_text(json.dumps(about))
        return True

    monkeypatch.setattr(modules["steps"].Steps, "judge", judge)

    def make(work="work", names=(), audio_seconds=None, broken=(), **options):
        def call(command, log, _environment):
            said.append(log.stem)
            if log.stem in broken:
                log.parent.mkdir(exist_ok=True)
                log.write_text("no room\n")
                return 1
            if "manifests_tools" in command:
                for split in ("train", "valid"):
                    file = Path(work, "manifests/music", f"{split}.tsv")
                    file.parent.mkdir(parents=True, exist_ok=True)
                    file.write_text(f"{Path('music').resolve()}\na.flac\t16000\n")
            elif log.stem.startswith("labels"):
                Path(command[command.index("--labels") + 1]).mkdir(parents=True)
            elif folder := [x for x in command if x.startswith("hydra.run.dir")]:
                file = Path(folder[0].partition("=")[2], "checkpoints/checkpoint_last.pt")
                file.parent.mkdir(parents=True, exist_ok=True)
                file.touch()
            return 0

        said = []
        table = modules["rows"].read(Path("rows.yaml"), False, audio_seconds)
        folders = Path(work), Path("results"), Path("judge"), {"music": Path("music")}
        steps = modules["steps"].Steps(modules["places"].Places(table, *folders), call=call)
        steps.said = said
        study = modules["schedule"].Study(steps, **options)
        return lambda: study.run(study.wanted(names)), said

    return make


def test_the_table_names_at_least_twenty_trained_rows_of_equal_audio(modules):
    table = modules["rows"].read(FOLDER / "rows.yaml")
    trained = [row for row in table.rows if row.trained]
    assert len({row.name for row in trained}) >= 20
    assert {row.audio_seconds for row in trained} == {4_000_000}
    by_name = {row.name: row for row in trained}
    assert by_name["hubert-music"].updates() == 8000
    assert by_name["m2v-30s"].updates() == by_name["m2v-music"].updates() == 22_222
    assert table.needs(by_name["hubert-layer6"])[0].id == "hubert-music-s1"


def test_digests_follow_settings_and_rows_before(modules, tmp_path):
    rows, file = modules["rows"], tmp_path / "rows.yaml"

    def digests():
        table = rows.read(file)
        return {row.id: rows.digest(table.made_of(row, {"music": "m"})) for row in table.rows}

    file.write_text(TRAINED)
    before = digests()
    file.write_text(TRAINED.replace("[mfcc], seeds", "[mfcc], audio_seconds: 50, seeds"))
    after = digests()
    assert {name for name in before if before[name] == after[name]} == {"floor-s1", "still-s1"}


def test_rows_wait_for_what_they_need_and_are_not_repeated(made):
    run, said = made(streams=2)
    assert run()
    assert said.index("first-s1") < said.index("labels-music-deep") < said.index("second-s1")
    assert said.index("first-s1") < said.index("third-s1")
    assert sorted(x for x in said if x.startswith("judge")) == [
        f"judge {name}-s{seed}"
        for name, seed in [("first", 1), ("first", 2), *((x, 1) for x in OTHERS)]
    ]
    run, said = made()
    assert run()
    assert said == []


def test_another_machine_goes_on_with_the_results_alone(made):
    run, said = made(names=["first", "second", "floor"])
    assert run()
    run, said = made(work="other")
    assert run()
    # The weights of one row that has been judged are needed again, but not for labels of its layer.
    assert sorted(x for x in said if "manifests" not in x) == [
        *("first-s1", "judge still-s1", "judge third-s1", "labels-music-mfcc", "still-s1"),
        "third-s1",
    ]
    Path("results", "second-s1.json").unlink()
    run, said = made(work="yet-another", names=["second"])
    assert run()
    assert [x for x in said if "manifests" not in x] == ["second-s1", "judge second-s1"]


def test_results_of_other_settings_are_not_overwritten(made):
    run, _ = made(names=["first"])
    assert run()
    before = Path("results/first-s1.json").read_text()
    run, said = made(names=["first"], audio_seconds=20)
    with pytest.raises(InputError, match=r"first-s1.json.*row.audio_seconds is 20 and was 40"):
        run()
    assert said == []
    assert Path("results/first-s1.json").read_text() == before


def test_other_sound_behind_the_same_lists_is_accepted_and_named(made, capsys):
    clip, file = Path("judge/a.flac"), Path("results/floor-s1.json")
    Path("judge/key.csv").write_text("path,label,split\na.flac,C major,train\n")
    write_tone(clip, 0.1, 16_000, seed=0)
    assert made(names=["floor"])[0]()
    accepted = "accepted, judged on clips of other or unknown sound: floor-s1"
    assert made(names=["floor"])[0]()
    assert accepted not in capsys.readouterr().out
    before = file.read_text()
    write_tone(clip, 0.1, 16_000, seed=1)
    assert made(names=["floor"])[0]()
    assert accepted in capsys.readouterr().out
    assert file.read_text() == before
    Path("judge/key.csv").write_text("path,label,split\na.flac,D major,train\n")
    with pytest.raises(InputError, match=r"floor-s1.json.*judge.tasks.key.list is .* and was"):
        made(names=["floor"])[0]()
    Path("judge/key.csv").write_text("path,label,split\na.flac,C major,train\n")
    about = json.loads(before)
    about["made_of"]["judge"] = "a digest of lists alone, of an older version"
    file.write_text(json.dumps(about))
    assert made(names=["floor"])[0]()
    assert accepted in capsys.readouterr().out
    clip.unlink()
    with pytest.raises(InputError, match=r"a clip of key cannot be read .*a.flac: No such file"):
        made(names=["floor"])


def test_what_a_failed_row_should_have_given_is_not_waited_for(made, capsys):
    run, said = made(broken=["labels-music-deep"])
    assert not run()
    text = capsys.readouterr().out
    assert "second-s1: failed: no room (work/logs/labels-music-deep.log)" in text
    assert "rows done: 5 of 6, left: 1" in text
    assert "judge third-s1" in said


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (OSError(28, "No space left on device", "x.json"), "No space left on device: 'x.json'"),
        (KeyError("valid_score"), "KeyError('valid_score')"),
    ],
)
def test_a_result_that_cannot_be_written_is_named(modules, made, monkeypatch, capsys, error, said):
    def judge(*_):
        raise error

    monkeypatch.setattr(modules["steps"].Steps, "judge", judge)
    assert not made(names=["floor"])[0]()
    assert f"floor-s1: failed: {said}" in capsys.readouterr().out.replace("[Errno 28] ", "")


def test_nothing_starts_that_would_not_end_in_time(made, capsys):
    run, said = made(time_limit=20, names=["first"])
    assert not run()
    assert "first-s1" not in said
    assert "first-s1: not begun" in capsys.readouterr().out


def test_rows_and_seeds_that_the_table_lacks_are_an_error(modules, made):
    with pytest.raises(
        InputError, match=r"--rows frist: no such row in the table; it has second, "
    ):
        made(names=["frist"])[0]()
    table = modules["rows"].read(Path("rows.yaml"))
    study = modules["schedule"].Study(SimpleNamespace(steps=None, places=None, table=table))
    assert [row.id for row in study.wanted([], [2])] == ["floor-s1", "still-s1", "first-s2"]
    with pytest.raises(InputError, match="--seeds 3: the table gives none of these rows"):
        study.wanted(["first"], [3])


def wait_for(text: str, log: Path) -> None:
    """Wait until a log has this text."""
    deadline = time.monotonic() + 120
    while not log.exists() or text not in log.read_text():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.skipif(sys.platform != "linux", reason="other systems do not tell")
def test_commands_end_with_a_killed_study(tmp_path):
    """A training that went on alone would keep the next one out of its folder."""
    script = "trap 'echo ended; exit' TERM; echo begun; while :; do sleep 0.1; done"
    program = f"from processes import *; Processes()(['sh', '-c', {script!r}], Path('log'), {{}})"
    study = subprocess.Popen(
        [sys.executable, "-c", program], cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(FOLDER)}
    )
    for text in ("begun\n", "begun\nended\n"):
        wait_for(text, tmp_path / "log")
        study.kill()
    study.wait()


def test_the_last_error_of_a_log_is_its_last_words(modules, tmp_path):
    last_words, log = modules["processes"].last_words, tmp_path / "log"
    assert last_words(log) == f"it said nothing ({log})"
    log.write_text("one\ntwo\n\n")
    assert last_words(log) == f"two ({log})"
    log.write_text("error: no room\ndf -h\n")
    assert last_words(log) == f"error: no room ({log})"


def test_side_by_side_trainings_share_a_gpu(modules, monkeypatch):
    clock = SimpleNamespace(monotonic=iter([0.0, 4.0, 10.0, 12.0]).__next__)
    monkeypatch.setattr(modules["processes"], "time", clock)
    shares = modules["processes"].Shares()
    with shares.of("0") as first, shares.of("0") as second:
        pass  # from 4 to 10 side by side
    assert (first, second) == ([9.0], [3.0])


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("labels: [mfcc]", "labels: [mfc]", "row first: no label set 'mfc'"),
        ("init: first", "init: fist", "row third: no row 'fist'"),
        ("encoder: mfcc", "encodr: mfcc", "row floor: no field 'encodr'"),
        ("checkpoint: first", "checkpoint: fist", "row second: no row 'fist'"),
        ("{encoder: mfcc}", "{corpus: music}", "row floor: needs `family`"),
        ("labels:", "label:", "no table of rows"),
    ],
)
def test_mistakes_in_the_table_are_named(modules, tmp_path, old, new, said):
    file = tmp_path / "rows.yaml"
    file.write_text(TRAINED.replace(old, new))
    with pytest.raises(InputError, match=said):
        modules["rows"].read(file)


def test_a_corpus_is_coded_alike_with_its_licences(modules, tmp_path, capsys):
    package = tmp_path / "packages/talk"
    for i in range(5):
        write_tone(package / f"usr/share/talk/{i}.wav", 15.0, 8000, seed=i)
    write_tone(package / "usr/share/talk/5.wav", 15.0, 8000, seed=0)  # a copy
    (package / "usr/share/doc/talk").mkdir(parents=True)
    (package / "usr/share/doc/talk/copyright").write_text("GPL")
    (tmp_path / "list.txt").write_text("# hours\ntalk  0.1  GPL\n")
    out = tmp_path / "speech"
    arguments = ["--packages", str(tmp_path / "packages"), "--list", str(tmp_path / "list.txt")]
    arguments += ["--out", str(out), "--hours", "0.02", "--join", "--workers", "1"]
    assert modules["corpus"].main(arguments) == 0
    assert "1 track, 1.2 min" in capsys.readouterr().out
    (track,) = (out / "talk").glob("*.ogg")
    assert (out / "licences/talk.txt").read_text() == "GPL"
    assert track.name in (out / "SHA256SUMS").read_text()
    before = os.stat(track).st_mtime_ns
    assert modules["corpus"].main(arguments) == 0
    assert os.stat(track).st_mtime_ns == before
    assert modules["corpus"].main(arguments[:6]) == 1
    assert "talk: no audio long enough for a track" in capsys.readouterr().err
    assert modules["corpus"].main([*arguments[:3], str(FOLDER / "music.txt"), *arguments[4:]]) == 1
    assert "warzone2100-music: no such package" in capsys.readouterr().err


def write_clips(folder: Path, *tasks: str) -> None:
    """Write 24 tones, loud or soft in their overtones, and a CSV of them for each task."""
    import soundfile

    time = np.arange(8_000) / 16_000
    lines = ["path,label,split"]
    for i in range(24):
        tone = np.sin(2 * np.pi * (220 + 3 * i) * time)
        path, split = f"audio/notes/p{i % 6}_{i}.flac", ("train", "test", "valid")[i // 2 % 3]
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(folder / path, 0.5 * (tone if i % 2 else np.sign(tone)), 16_000)
        lines.append(f"{path},{('square', 'sine')[i % 2]},{split}")
    for task in tasks:
        (folder / f"{task}.csv").write_text("\n".join(lines) + "\n")


def run_here(_processes, command: list[str], log: Path, environment: dict[str, str]) -> int:
    """Run a command of Python in this process, which has imported what it needs."""
    program, *arguments = command[1:]
    sys.path.insert(0, str(Path(program).parent))
    with log.open("a") as file, redirect_stdout(file), redirect_stderr(file):
        try:
            if program == "-m":
                return importlib.import_module(f"{arguments[0]}.__main__").main(arguments[1:])
            if program == "-c":
                family = Path(arguments[2]).name
                train(family, *arguments[5:], config_name=arguments[4])
            else:
                sys.argv = [program, *arguments]
                runpy.run_path(program, run_name="__main__")
        except SystemExit as end:
            print(end.code)
            return bool(end.code)
        finally:
            sys.path.pop(0)
    return 0


def test_a_miniature_goes_from_music_to_the_report(modules, tmp_path, monkeypatch, capsys):
    """With processes as a user has them until its training is killed, and then in this one."""
    for i in range(6):
        write_tone(tmp_path / f"music/{i}.flac", 3.0, 16_000, seed=i)
    write_clips(tmp_path / "judge", "pitch", "instrument")
    arguments = ["--miniature", "--rows", "hubert-music"]
    for name in ("music", "judge", "work", "results"):
        arguments += [f"--{name}", str(tmp_path / name)]
    command = [sys.executable, str(FOLDER / "study.py"), *arguments]
    log = tmp_path / "work/logs/hubert-music-s1.log"
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as study:
        wait_for("train_inner", log)
        study.kill()
    wait_for("stopped by SIGTERM: update ", log)
    (lock,) = (tmp_path / "work/runs").glob("*/checkpoints.lock")
    with lock.open() as file:
        fcntl.flock(file, fcntl.LOCK_EX)  # which waits for the end of its process
    monkeypatch.setattr(modules["processes"].Processes, "__call__", run_here)
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    assert modules["study"].main(arguments) == 0
    assert capsys.readouterr().out.endswith("rows done: 1 of 1, left: 0\n"), log.read_text()
    assert main(["report", "--study", str(tmp_path / "results"), "--out", str(tmp_path)]) == 0
    text = (tmp_path / "study.md").read_text()
    assert "A miniature: the program runs" in text
    assert "\n| hubert-music | 1 | " in text


def test_results_of_a_row_hold_scores_layers_and_draws(modules, tmp_path, monkeypatch):
    """A floor, judged by the real judge on tones in this process."""
    from tests.examples.test_open_tasks import FOLDER as JUDGE

    write_clips(tmp_path, "instrument")
    monkeypatch.syspath_prepend(str(JUDGE))
    judge = importlib.import_module("judge")
    arguments = ["mfcc", "--data", str(tmp_path), "--out", str(tmp_path / "judge"), "--cpu"]
    assert judge.main(arguments) == 0
    folder = tmp_path / "results"
    run = tmp_path / "work/runs/mfcc"
    run.mkdir(parents=True)
    line = '[x][train_inner][INFO] - {"num_updates": "1", "loss": "2"}'
    (run / "hydra_train.log").write_text(f"saved {run}/checkpoints; {FOLDER}\n{line}\n")
    modules["results"].write(folder, "mfcc-s1", {"made_of": {}}, tmp_path / "judge/full", run)
    log = gzip.decompress((folder / "mfcc-s1.log.gz").read_bytes()).decode()
    assert log == f"saved WORK/runs/mfcc/checkpoints; ./examples/study\n{line}\n"
    about = json.loads((folder / "mfcc-s1.json").read_text())
    scored = about["tasks"]["instrument"]
    assert scored["low"] <= scored["value"] <= scored["high"]
    assert scored["layers"]
    assert scored["metric"] == "accuracy"
    draws = np.load(folder / "mfcc-s1.npz")["instrument"]
    assert len(draws) == 1001
    assert draws[0] == pytest.approx(scored["value"], abs=1e-4)
