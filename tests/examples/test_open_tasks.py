"""examples/open_tasks: labels follow from the score, sound from the plan, and the judge judges."""

import csv
import importlib
import json
import pickle
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from music_ssl_fairseq import audio
from music_ssl_fairseq.errors import InputError
from music_ssl_fairseq.report.gather import Figure, Probe
from tests import EXAMPLES

FOLDER = EXAMPLES / "open_tasks"
MODULES = (
    "scores",
    "songs",
    "notes",
    "real",
    "render",
    "tasks",
    "compare",
    "table",
    "judge",
    "build",
)


@pytest.fixture(scope="module", autouse=True)
def modules():
    """The folder's modules, as its scripts import them; nothing of them is left behind."""
    sys.path.insert(0, str(FOLDER))
    yield {name: importlib.import_module(name) for name in MODULES}
    sys.path.remove(str(FOLDER))
    for name in MODULES:
        sys.modules.pop(name, None)


def piece(scores, **fields):
    """Eight bars of 4/4: C major and G major by turns, a bar each, in three parts and a bass."""
    chords = [(60, 64, 67, 48), (59, 62, 67, 43)] * 4
    parts = [
        [(4.0 * bar, 4.0, chord[voice]) for bar, chord in enumerate(chords)] for voice in range(4)
    ]
    values = {
        **{"name": "bach_x", "collection": "bach", "parts": parts, "key": (0, "major")},
        **{"metre": (4, 4), "bars": [4.0 * bar for bar in range(9)], "melody": "m"},
    }
    return scores.Piece(**{**values, **fields})


def song(modules, start=2.0, tempo=120.0, transposition=3, **fields):
    voices = [(0, 0), (40, 0), (73, 0), (33, 0)]
    made = piece(modules["scores"], **fields)
    return modules["songs"].Song("s_0", "test", made, start, tempo, transposition, voices, (0, 1))


def test_labels_are_those_of_the_excerpt(modules):
    songs, made = modules["songs"], song(modules)
    assert songs.key_of(made) == "Eb major"
    assert songs.tempo_of(made) == "115-152"
    assert songs.metre_of(made.piece.metre) == "duple"
    assert songs.families_of(made) == ["bass", "piano", "pipe", "string"]
    # From the middle of a bar on, a beat each half second: 3, 4, 1, 2, ...
    assert songs.beats_of(made)[:4] == [(0.0, 3), (0.5, 4), (1.0, 1), (1.5, 2)]
    assert len(songs.beats_of(made)) == 10


def test_a_compound_metre_has_beats_of_three(modules):
    songs = modules["songs"]
    made = song(modules, 0.0, 60.0, metre=(6, 8), bars=[3.0 * bar for bar in range(11)])
    assert songs.metre_of((6, 8)) == "compound"
    assert songs.beats_of(made) == [(0.0, 1), (1.0, 2), (2.0, 1), (3.0, 2), (4.0, 1)]


def test_what_is_silent_in_an_excerpt_is_no_label(modules):
    parts = piece(modules["scores"]).parts
    parts[1] = [note for note in parts[1] if note[0] >= 16]  # the violin waits for bar five
    made = song(modules, parts=parts)
    assert modules["songs"].families_of(made) == ["bass", "piano", "pipe"]


@pytest.mark.parametrize(
    ("pitches", "bass", "chord"),
    [
        ({0, 4, 7}, 52, (0, "major")),
        ({7, 11, 2, 5}, 55, (7, "major")),  # a dominant seventh
        ({9, 0, 4}, 57, (9, "minor")),
        ({11, 2, 5}, 50, (11, "other")),
        ({0, 4, 8}, 64, (4, "other")),  # augmented: the bass is the root
        ({0, 2, 4}, 60, None),
    ],
)
def test_chords_are_sets_of_notes(modules, pitches, bass, chord):
    assert modules["songs"]._chord(frozenset(pitches), bass) == chord


def test_chords_of_a_score_are_found_where_they_sound(modules):
    found = list(modules["songs"]._harmonies(piece(modules["scores"])))
    assert found[:2] == [(0.0, 4.0, 0, "major"), (4.0, 8.0, 7, "major")]


def test_plans_keep_melodies_together_and_are_prefixes_of_larger_ones(modules):
    songs, scores = modules["songs"], modules["scores"]
    pieces = [piece(scores, name=f"bach_{i}", melody=str(i // 2)) for i in range(60)]
    counts = {"train": 6, "valid": 2, "test": 6}
    few = songs.plan({"bach": pieces}, {"bach": 1.0}, counts, 0)
    many = songs.plan({"bach": pieces}, {"bach": 1.0}, {**counts, "train": 9}, 0)
    assert many[:6] == few[:6]
    assert songs.plan({"bach": pieces}, {"bach": 1.0}, counts, 1) != few
    splits = {}
    for made in many:
        assert splits.setdefault(made.piece.melody, made.split) == made.split


def test_pitches_are_tested_on_programs_that_do_not_train(modules):
    notes = modules["notes"]
    plans = {**notes.plan({"a": False}, 4, 2, 0), **notes.plan({"b": True}, 6, 3, 0)}
    programs = {"train": set(), "test": set()}
    for group in plans.values():
        for note in group:
            if note.pitch_split in programs:
                programs[note.pitch_split].add(note.program)
    assert all(programs.values())
    assert not programs["train"] & programs["test"]


def test_the_same_plan_sounds_the_same(modules, tmp_path):
    pretty_midi = pytest.importorskip("pretty_midi")
    pytest.importorskip("midirenderer")
    render, made = modules["render"], song(modules)
    font = Path(pretty_midi.__file__).with_name("TimGM6mb.sf2")
    for name in "ab":
        render.song(tmp_path / f"{name}.flac", made, font)
    files = [(tmp_path / f"{name}.flac").read_bytes() for name in "ab"]
    assert files[0] == files[1]
    heard = audio.read(tmp_path / "a.flac")
    assert len(heard) == 5 * 16_000
    spectrum = np.abs(np.fft.rfft(heard[16_000:32_000]))
    # Bar two, a G major chord, three semitones higher: the bass has a Bb2.
    lowest = 90 + spectrum[90:140].argmax()
    assert lowest == pytest.approx(440 * 2 ** ((43 + 3 - 69) / 12), rel=0.01)


@pytest.fixture(scope="module")
def data(modules, tmp_path_factory):
    """A data folder with two tasks on 48 tones: which octave, and loud or soft in the end."""
    folder = tmp_path_factory.mktemp("open_tasks")
    time = np.arange(8_000) / 16_000
    rows = {"pitch": [], "instrument": []}
    for i in range(48):
        split = ("train", "test", "train", "valid")[i // 3 % 4]
        tone = np.sin(2 * np.pi * (220, 440, 880)[i % 3] * (1 + i / 2000) * time)
        wave = tone if i % 2 else np.sign(tone)
        path = f"audio/notes/p{i % 6}_{i}.flac"
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        modules["render"].write(folder / path, 0.5 * wave)
        rows["pitch"].append((path, f"{i % 3}", split))
        rows["instrument"].append((path, ("square", "sine")[i % 2], split))
    for name, of_task in rows.items():
        with (folder / f"{name}.csv").open("w", newline="") as file:
            csv.writer(file).writerows([("path", "label", "split"), *of_task])
    return folder


def test_ranks_share_their_mean_and_a_figure_that_is_not_defined_is_last(modules):
    figures = [[0.5, float("nan")], [0.7, 0.1], [0.5, 0.3]]
    assert modules["compare"].mean_ranks(figures) == [(2.5 + 3) / 2, (1 + 2) / 2, (2.5 + 1) / 2]


def test_the_judge_ranks_and_compares(modules, data, tmp_path):
    judge = modules["judge"]
    arguments = ["mfcc", "chroma", "logmel", "--data", str(data), "--out", str(tmp_path), "--cpu"]
    assert judge.main(arguments) == 0
    text = (tmp_path / "judge.md").read_text()
    assert "| encoder | rank | pitch: accuracy | instrument: accuracy |" in text
    assert "Difference from better of MFCC and chroma" in text
    with (tmp_path / "judge.csv").open() as file:
        lines = list(csv.DictReader(file))
    assert len(lines) == 6
    values = {(line["encoder"], line["task"]): float(line["value"]) for line in lines}
    assert values["mfcc", "instrument"] > 0.9
    assert all(float(x["low"]) <= float(x["value"]) <= float(x["high"]) for x in lines)
    two = [*arguments, "--seeds", "2", "--tasks", "pitch"]
    assert judge.main(two) == 0
    with (tmp_path / "judge.csv").open() as file:
        means = {line["encoder"]: line for line in csv.DictReader(file)}
    found = {
        json.loads(file.read_text())["upstream"]: json.loads(file.read_text())["metrics"]
        for file in tmp_path.glob("full/probes/*-seed2/pitch/test.json")
    }
    for name, metrics in found.items():
        mean = (values[name, "pitch"] + metrics["accuracy"]) / 2
        assert float(means[name]["value"]) == pytest.approx(mean)
        assert means[name]["layer"] == f"{name}, {name}"
    assert len(found) == 3
    assert "Difference from better of MFCC and chroma" in (tmp_path / "judge.md").read_text()


def test_processes_side_by_side_do_all_tasks(modules, data, tmp_path, monkeypatch):
    every, divide = modules["tasks"].TASKS, modules["tasks"].side_by_side
    assert sorted(x.name for group in divide(every) for x in group) == sorted(x.name for x in every)
    asked = []

    def ordered(job, items, pool):
        """Pickle the job and its items, as a pool does."""
        asked.append((pool.workers, [(name, [x.name for x in group]) for name, group in items]))
        return [pickle.loads(pickle.dumps(job))(pickle.loads(pickle.dumps(item))) for item in items]

    monkeypatch.setattr(modules["judge"], "ordered", ordered)
    monkeypatch.setattr(modules["judge"], "start_server", lambda _: None)
    both = ["mfcc", "logmel"]
    arguments = [*both, "--data", str(data), "--out", str(tmp_path), "--cpu", "--jobs", "3"]
    assert modules["judge"].main(arguments) == 0
    assert asked == [(2, [(name, ["pitch", "instrument"]) for name in both])]
    text = (tmp_path / "judge.csv").read_text()
    assert [text.count(f"\n{name},") for name in both] == [2, 2]


def test_a_change_of_labels_or_audio_is_probed_again(modules, data, tmp_path, capsys):
    judge = modules["judge"]
    arguments = ["logmel", "--data", str(data), "--out", str(tmp_path), "--tasks", "instrument"]
    assert judge.main(arguments) == 0
    assert "logmel: instrument," in capsys.readouterr().err
    assert judge.main(arguments) == 0
    assert "logmel: instrument," not in capsys.readouterr().err
    table = data / "instrument.csv"
    before = table.read_text()
    table.write_text("\n".join(before.splitlines()[:-1]) + "\n")
    assert judge.main(arguments) == 0
    assert "logmel: instrument," in capsys.readouterr().err
    (stamp,) = tmp_path.glob("full/probes/*/instrument/made_of.json")
    stamp.write_text("{")
    song = data / "audio/notes/p3_3.flac"  # of the test split
    audio_before = song.read_bytes()
    modules["render"].write(song, np.zeros(9_000, np.float32))
    assert judge.main(arguments) == 0
    assert "logmel: instrument," in capsys.readouterr().err
    assert "p3_3.flac\t9000\n" in (tmp_path / "full/tasks/instrument/test.tsv").read_text()
    table.write_text(before)
    song.write_bytes(audio_before)


def test_a_floor_that_is_not_defined_is_no_floor(modules):
    table = modules["table"]

    def probes(model: str, value: float) -> dict[str, Any]:
        figure = Figure(value, value, value)
        probe = Probe(Path(model), model, "pitch", {}, [], {"accuracy": figure})
        return {"pitch": [probe]}

    values = {"mfcc": float("nan"), "chroma": 0.2, "x": 0.5}
    models = {model: probes(model, value) for model, value in values.items()}
    ((title, ((label, (((one,), (floor,)),)),)),) = table._comparisons(models, ["pitch"], None)
    assert (title, label) == ("Difference from better of MFCC and chroma", "x")
    assert (one.model, floor.model) == ("x", "chroma")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["mfcc", "mfcc"], "mfcc and mfcc are one encoder"),
        (["tests/tiny.py", "./tests/tiny.py"], "./tests/tiny.py are one encoder: name it once"),
        (["mfcc", "--against", "chroma"], "--against chroma"),
        (["mfcc", "--jobs", "0"], "--jobs 0: give the number of processes"),
        (["mfcc", "--tasks", "kee"], "no task 'kee'"),
        (["mfcc", "--tasks", "beat"], "no beat.csv"),
        (["logmel", "nowhere.pt", "--tasks", "pitch"], "nowhere.pt"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(modules, data, tmp_path, capsys, arguments, said):
    assert modules["judge"].main([*arguments, "--data", str(data), "--out", str(tmp_path)]) == 1
    lines = capsys.readouterr().err.splitlines()
    (error,) = [x for x in lines if x.startswith("error: ")]
    assert said in error
    assert not any(x.startswith("probing ") for x in lines)


def test_other_labels_than_recorded_are_an_error(modules, tmp_path, monkeypatch):
    build = modules["build"]
    monkeypatch.setattr(build, "HASHES", tmp_path / "hashes.json")
    rows = {"key": [("a.flac", "C major", "test")]}
    build.check(rows, {"songs": [0.1]}, record=True)
    build.check(rows, {"songs": [0.1 + 1e-12]}, record=False)
    with pytest.raises(InputError, match=r"^songs: "):
        build.check(rows, {"songs": [0.2]}, record=False)
    with pytest.raises(InputError, match=r"^key: "):
        build.check({"key": [("a.flac", "D major", "test")]}, {"songs": [0.1]}, record=False)


def test_clips_that_sound_otherwise_are_named(modules, tmp_path, monkeypatch, capsys):
    build, names = modules["build"], ["audio/songs/a.flac", "audio/notes/b.flac"]
    monkeypatch.setattr(build, "HASHES", tmp_path / "hashes.json")
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True)
        modules["render"].write(tmp_path / name, np.sin(np.arange(9_000) / 9))
    build.check_sound(tmp_path, names, record=True)
    modules["render"].write(tmp_path / names[1], np.sin(np.arange(9_000) / 9.001))
    build.check_sound(tmp_path, names, record=False)
    (warning,) = capsys.readouterr().err.splitlines()
    assert warning.startswith(f"warning: {tmp_path}/audio/notes: sounds otherwise")


def test_small_tasks_on_the_same_files_take_the_same_ones(modules, data):
    tasks = modules["tasks"]
    known = {task.name: task for task in tasks.TASKS}
    chosen = []
    for name in ("pitch", "instrument"):
        task = tasks.OpenTask(name, known[name].kind, known[name].metric, small=(5, 3, 4))
        rows = tasks.rows_of(task, data, small=True)
        assert [row[2] for row in rows].count("train") == 5
        chosen.append([row[0] for row in rows])
    assert chosen[0] == chosen[1]
