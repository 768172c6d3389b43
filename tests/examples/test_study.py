"""examples/study: the table of rows, which row runs when, corpora, and a miniature end to end."""

import importlib
import json
import os
import sys
from pathlib import Path

import numpy as np
import pytest

from music_ssl_fairseq.errors import InputError
from tests import EXAMPLES
from tests.audio_files import write_tone

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
"""


@pytest.fixture(scope="module", autouse=True)
def modules():
    """The folder's modules, as its scripts import them; nothing of them is left behind."""
    names = ("rows", "results", "study", "corpus")
    sys.path.insert(0, str(FOLDER))
    yield {name: importlib.import_module(name) for name in names}
    sys.path.remove(str(FOLDER))
    for name in names:
        sys.modules.pop(name, None)


@pytest.fixture
def made(modules, tmp_path, monkeypatch):
    """Return a function that makes a study of TRAINED whose commands only leave their files.

    What was called is in its `said`. Rows are not judged, but their results are left.
    """
    monkeypatch.chdir(tmp_path)
    Path("rows.yaml").write_text(TRAINED)
    module = modules["study"]
    Path("music").mkdir()

    def judge(study, row, _gpu):
        study.said.append(f"judge {row.id}")
        study.options.results.mkdir(exist_ok=True)
        about = {"digest": study.digests[row.id]}
        (study.options.results / f"{row.id}.json").write_text(json.dumps(about))

    monkeypatch.setattr(module.Study, "judge", judge)

    def make(work="work", **options):
        def call(command, log, _environment):
            said.append(log.stem)
            if "manifests_tools" in command:
                for split in ("train", "valid"):
                    file = Path(work, "manifests/music", f"{split}.tsv")
                    file.parent.mkdir(parents=True, exist_ok=True)
                    file.write_text("root\na.flac\t16000\n")
            elif log.stem in broken:
                return 1
            elif log.stem.endswith(("-s1", "-s2")):
                file = Path(work, "runs", log.stem, "checkpoints/checkpoint_last.pt")
                file.parent.mkdir(parents=True, exist_ok=True)
                file.touch()
            return 0

        said, broken = [], options.pop("broken", ())
        fixed = {"work": Path(work), "results": Path("results"), "judge": Path("judge")}
        fixed |= {"corpora": {"music": Path("music")}, "table": Path("rows.yaml"), **options}
        study = module.Study(module.Options(**fixed), call)
        study.said = said
        return study

    return make


def test_the_table_names_at_least_twenty_trained_rows_of_equal_audio(modules):
    table = modules["rows"].read(FOLDER / "rows.yaml")
    trained = [row for row in table.rows if row.family]
    assert len({row.name for row in trained}) >= 20
    assert {row.audio_seconds for row in trained} == {4_000_000}
    by_name = {row.name: row for row in trained}
    assert by_name["hubert-music"].updates() == 8000
    assert by_name["m2v-30s"].updates() == by_name["m2v-music"].updates() == 8333
    assert table.needs(by_name["hubert-layer6"])[0].id == "hubert-music-s1"


def test_digests_follow_settings_and_rows_before(modules, tmp_path):
    read, file = modules["rows"].read, tmp_path / "rows.yaml"
    file.write_text(TRAINED)
    before = {row.id: read(file).digest(row) for row in read(file).rows}
    file.write_text(TRAINED.replace("[mfcc], seeds", "[mfcc], audio_seconds: 50, seeds"))
    after = {row.id: read(file).digest(row) for row in read(file).rows}
    assert {name for name in before if before[name] == after[name]} == {"floor-s1"}


def test_rows_wait_for_what_they_need_and_are_not_repeated(made):
    study = made(streams=2)
    assert study.run()
    said = study.said
    assert said.index("first-s1") < said.index("labels-music-deep") < said.index("second-s1")
    assert said.index("first-s1") < said.index("third-s1")
    assert sorted(x for x in said if x.startswith("judge")) == [
        f"judge {name}" for name in ("first-s1", "first-s2", "floor-s1", "second-s1", "third-s1")
    ]
    again = made()
    assert again.run()
    assert again.said == []


def test_another_machine_goes_on_with_the_results_alone(made):
    assert made(names=["first", "floor"]).run()
    study = made(work="other", names=["first", "third", "floor"])
    assert study.run()
    # Its weights are needed, but it has been judged.
    assert [x for x in study.said if "manifests" not in x and "labels" not in x] == [
        *("first-s1", "third-s1", "judge third-s1")
    ]


def test_what_a_failed_row_should_have_given_is_not_waited_for(made, capsys):
    study = made(broken=["labels-music-deep"])
    assert not study.run()
    assert "left: second-s1" in capsys.readouterr().out
    assert "judge third-s1" in study.said


def test_nothing_starts_that_would_not_end_in_time(made):
    study = made(time_limit=20, names=["first"])
    assert not study.run()
    assert "first-s1" not in study.said


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("labels: [mfcc]", "labels: [mfc]", "row first: no label set 'mfc'"),
        ("init: first", "init: fist", "row third: no row 'fist'"),
        ("encoder: mfcc", "encodr: mfcc", "row floor: no field 'encodr'"),
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
    assert "1 tracks, 0.02 hours" in capsys.readouterr().out
    (track,) = (out / "talk").glob("*.ogg")
    assert (out / "licences/talk.txt").read_text() == "GPL"
    assert track.name in (out / "SHA256SUMS").read_text()
    before = os.stat(track).st_mtime_ns
    assert modules["corpus"].main(arguments) == 0
    assert os.stat(track).st_mtime_ns == before
    assert modules["corpus"].main([*arguments[:3], str(FOLDER / "music.txt"), *arguments[4:]]) == 1
    assert "warzone2100-music: no such package" in capsys.readouterr().err


def test_results_of_a_row_hold_scores_layers_and_draws(modules, tmp_path, monkeypatch):
    """A floor, judged by the real judge on tones in this process."""
    import soundfile

    from tests.examples.test_open_tasks import FOLDER as JUDGE

    time = np.arange(8_000) / 16_000
    lines = ["path,label,split"]
    for i in range(24):
        tone = np.sin(2 * np.pi * (220 + 3 * i) * time)
        path, split = f"audio/notes/p{i % 6}_{i}.flac", ("train", "test", "valid")[i // 2 % 3]
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(tmp_path / path, 0.5 * (tone if i % 2 else np.sign(tone)), 16_000)
        lines.append(f"{path},{('square', 'sine')[i % 2]},{split}")
    (tmp_path / "instrument.csv").write_text("\n".join(lines) + "\n")
    monkeypatch.syspath_prepend(str(JUDGE))
    judge = importlib.import_module("judge")
    arguments = ["mfcc", "--data", str(tmp_path), "--out", str(tmp_path / "judge"), "--cpu"]
    assert judge.main(arguments) == 0
    folder = tmp_path / "results"
    modules["results"].write(folder, "mfcc-s1", {"digest": "d"}, tmp_path / "judge/full", None)
    about = json.loads((folder / "mfcc-s1.json").read_text())
    scored = about["tasks"]["instrument"]
    assert scored["low"] <= scored["value"] <= scored["high"]
    assert scored["layers"]
    assert scored["metric"] == "accuracy"
    draws = np.load(folder / "mfcc-s1.npz")["instrument"]
    assert len(draws) == 1001
    assert draws[0] == pytest.approx(scored["value"], abs=1e-4)
    assert modules["results"].is_done(folder, "mfcc-s1", "d")
    assert not modules["results"].is_done(folder, "mfcc-s1", "e")
    for name in ("judge", "tasks", "table"):
        sys.modules.pop(name, None)
