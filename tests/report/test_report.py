"""The report: intervals, tables, published figures."""

import csv
import json
import math
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from music_ssl_fairseq.errors import InputError
from music_ssl_fairseq.probing.scoring.metrics import Scores, evaluate
from music_ssl_fairseq.probing.scoring.predictions import Predictions
from music_ssl_fairseq.probing.scoring.results import write_heads, write_scores
from music_ssl_fairseq.probing.spec import KINDS, ProbingSpec
from music_ssl_fairseq.report import __main__ as report_command
from music_ssl_fairseq.report import floors
from music_ssl_fairseq.report.bootstrap import interval, resampled, statistic
from music_ssl_fairseq.report.floors import PUBLISHED, TASKS
from music_ssl_fairseq.report.gather import Figure, find
from tests.options import with_defaults

run = with_defaults(report_command)

CLASSES = ("A minor", "C major", "G major")
TARGETS = ("arousal", "valence")


def predictions(kind: str, clips: int = 40, groups: int = 40) -> Predictions:
    rng = np.random.default_rng(1)
    index = np.arange(clips) % groups
    outputs = rng.standard_normal((clips, 3))
    targets = rng.integers(0, 3, groups)[index]
    if kind == "multi-label":
        targets = rng.random((clips, 3)) < 0.4
    elif kind == "regression":
        targets = rng.standard_normal((clips, 2))
        outputs = targets + rng.standard_normal((clips, 2))
    elif kind == "beats":
        claimed = rng.integers(20, 40, (clips, 6)).astype(float)
        claimed[:, [0, 3]] = rng.integers(5, 20, (clips, 2))
        outputs, targets = claimed, rng.random((clips, 2))
    names = [f"{i}.wav" for i in range(clips)]
    return Predictions(names, index, outputs, targets, np.ones(clips, np.int64))


def task(kind: str, name: str = "t") -> ProbingSpec:
    fields = {"regression": {"targets": TARGETS}, "beats": {}}.get(kind, {"classes": CLASSES})
    return ProbingSpec(name, kind, KINDS[kind].choosing[0], **fields)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("groups", [40, 10])
def test_each_file_drawn_once_is_the_metric_itself(kind, groups):
    found = predictions(kind, groups=groups)
    for name, value in evaluate(task(kind), found).values.items():
        once = statistic(name, found, np.ones((1, groups), int), CLASSES, TARGETS)
        assert once[0] == pytest.approx(value, abs=1e-6), name


@pytest.mark.parametrize("kind", KINDS)
def test_a_song_drawn_twice_counts_as_if_it_were_there_twice(kind):
    found = predictions(kind, clips=12, groups=12)
    counts = np.array([[2, 0, 1, 1, 3, 1, 0, 1, 1, 0, 1, 1]])
    again = np.repeat(np.arange(12), counts[0])
    repeated = Predictions(
        [f"{i}" for i in again],
        np.arange(12),
        *(values[again] for values in (found.outputs, found.targets, found.windows)),
    )
    for name, value in evaluate(task(kind), repeated).values.items():
        assert statistic(name, found, counts, CLASSES, TARGETS)[0] == pytest.approx(value, abs=1e-6)


def test_the_interval_is_that_of_a_binomial_where_one_is_known():
    clips = 400
    right = np.arange(clips) < 300
    outputs = np.where(right[:, None], [[1.0, 0.0, 0.0]], [[0.0, 1.0, 0.0]])
    found = Predictions(
        [str(i) for i in range(clips)],
        np.arange(clips),
        outputs,
        np.zeros(clips, np.int64),
        np.ones(clips, np.int64),
    )
    low, high = interval("accuracy", resampled("accuracy", found, CLASSES, resamples=4000))
    spread = 1.96 * np.sqrt(0.75 * 0.25 / clips)
    assert (low, high) == pytest.approx((0.75 - spread, 0.75 + spread), abs=0.006)
    one, two = (resampled("accuracy", found, CLASSES) for _ in range(2))
    assert np.array_equal(one, two)
    # Four clips a song: less is known.
    songs = Predictions(found.names, np.arange(clips) // 4, outputs, found.targets, found.windows)
    wide = interval("accuracy", resampled("accuracy", songs, CLASSES))
    assert wide[1] - wide[0] > 1.7 * (high - low)


def test_the_interval_of_r2_of_a_few_files_holds_the_figure():
    """Resamples of almost one value have huge negative scores."""
    rng = np.random.default_rng(0)
    truth = np.array([0.0, 0.0, 0.0, 1e-3, 0.01, 1.0])[:, None]
    outputs = truth + 0.3 * rng.standard_normal(truth.shape)
    found = Predictions([""] * 6, np.arange(6), outputs, truth, np.ones(6, np.int64))
    low, high = interval("r2_a", resampled("r2_a", found, targets=("a",)))
    assert low <= statistic("r2_a", found, np.ones((1, 6)), targets=("a",))[0] <= high
    assert low < -100


def test_published_figures_are_those_of_the_protocol():
    known = {paper.model: paper.figures for paper in PUBLISHED}
    assert known["music2vec (MAP)"]["giantsteps-key", "weighted_key_score"] == 0.506
    assert known["MERT-v1-95M"]["emomusic", "r2_valence"] == 0.555
    assert known["MERT-v1-95M"]["mtg-top50", "macro_average_precision"] == 0.29
    assert known["Jukebox-5B"]["vocalset-singer", "accuracy"] == 0.826
    assert known["MuQ"]["nsynth-pitch", "accuracy"] == pytest.approx(0.923)
    assert ("gtzan-beat", "f_measure") not in known["Jukebox-5B"]
    assert ("mtg-genre", "macro_roc_auc") not in known["MuQ"]
    assert len(TASKS) == 13
    sources = {paper.model: paper.source for paper in PUBLISHED}
    assert len(sources) == len(PUBLISHED)
    assert "2501.01108" in sources.pop("MuQ")
    assert known["MFCC"]["emomusic", "r2_arousal"] == 0.479
    assert known["chroma"]["giantsteps-key", "weighted_key_score"] == 0.565
    assert all("2107.05677" in sources.pop(name) for name in ("MFCC", "chroma"))
    assert all("2306.10548" in source for source in sources.values())


def leave_probe(folder: Path, kind: str, name: str, upstream: str, window: float = 5.0) -> None:
    """What training and fairseq-validate leave."""
    about = {
        **{"task": name, "kind": kind, "metric": KINDS[kind].choosing[0]},
        **{"classes": list(task(kind).classes), "targets": list(task(kind).targets)},
        **{"upstream": upstream, "fingerprint": "ab", "window_seconds": window, "layer": "2"},
        **{"learning_rate": 0.001, "valid_score": 0.5, "best_epoch": 3},
    }
    heads = [
        {"layer": layer, "learning_rate": rate, "score": score, "best_epoch": 1, "epochs": 2}
        | {"chosen": False}
        for layer in ("0", "1", "all")
        for rate, score in ((0.1, 0.4), (0.01, float("nan")))
    ]
    write_heads(folder, about, heads)
    found = predictions(kind)
    scores: Scores = evaluate(task(kind, name), found)
    write_scores(folder, "test", about, scores._replace(absent=["kazoo"]), found)


def test_tables_of_models_and_tasks(tmp_path):
    leave_probe(tmp_path / "runs/a", "multi-class", "gtzan-genre", "first")
    leave_probe(tmp_path / "runs/b", "regression", "emomusic", "first")
    leave_probe(tmp_path / "runs/c", "multi-class", "gtzan-genre", "second", window=30)
    text = run([tmp_path / "runs"], tmp_path / "out", resamples=50, no_plot=True)
    lines = text.splitlines()
    assert (
        "| model | gtzan-genre: accuracy | emomusic: r2 valence | emomusic: r2 arousal |" in lines
    )
    assert any(line.startswith("| second, 30 s | ") for line in lines)
    assert (
        "| MERT-v1-95M | MARBLE, arXiv 2306.10548, tables of results | 74.8 | 55.5 | 76.3 |"
        in lines
    )
    assert "| MuQ | MuQ, arXiv 2501.01108, tables 1 and 2 | 85.5 | 60.9 | 75.4 |" in lines
    assert "- gtzan-genre: not scored, because absent from test: kazoo." in lines
    with (tmp_path / "out/report.csv").open() as file:
        rows = list(csv.DictReader(file))
    measured = [row for row in rows if row["source"] == "measured"]
    assert [row["metric"] for row in measured] == ["r2_valence", "r2_arousal", *["accuracy"] * 2]
    for row in measured:
        assert float(row["low"]) <= float(row["value"]) <= float(row["high"])
    sources = {paper.source for paper in PUBLISHED}
    published = [row for row in rows if row["source"] in sources]
    assert len(published) == len(rows) - len(measured) == 3 * len(PUBLISHED)
    assert {row["task"] for row in published} == {"gtzan-genre", "emomusic"}


def test_the_page_in_a_browser(tmp_path, browser):
    """It loads without a complaint, shows every figure, and its table sorts by numbers."""
    for folder, kind, name, model in (
        ("a", "multi-class", "gtzan-genre", "first"),
        ("b", "regression", "emomusic", "second <&>"),
        ("c", "multi-class", "gtzan-genre", "third"),
    ):
        leave_probe(tmp_path / "runs" / folder, kind, name, model)
    found = predictions("multi-class")
    found.outputs[:] = np.eye(3)[found.targets]
    about = json.loads((tmp_path / "runs/c/probe.json").read_text())
    right = evaluate(task("multi-class"), found)
    write_scores(tmp_path / "runs/c", "test", about, right, found)
    stats = '{"loss_m": "5", "accuracy_m": "0.1", "majority_m": "0.05", "num_updates": "1"}'
    for name in ("c", "pretraining", "aborted"):
        (tmp_path / "runs" / name).mkdir(exist_ok=True)
        log = f"[t][train_inner][INFO] - {stats}\n" if name != "aborted" else ""
        (tmp_path / "runs" / name / "hydra_train.log").write_text(log)
    run([tmp_path / "runs"], tmp_path / "out", resamples=9)
    browser.open(tmp_path / "out/report.html")
    rows = "[...document.querySelector('table').tBodies[0].rows]"
    models = f"{rows}.map(row => row.cells[0].textContent)"
    head = "document.querySelector('thead th:nth-child(2)')"
    assert browser.run(f"{head}.textContent") == "gtzan-genre: accuracy"
    browser.run(f"{head}.firstChild.click()")
    assert browser.run(models) == ["third", "first", "second <&>"]
    browser.run(f"{head}.firstChild.click()")
    assert browser.run(models) == ["first", "third", "second <&>"]
    assert browser.run(f"{head}.getAttribute('aria-sort')") == "ascending"
    best = "[...document.querySelectorAll('td.best')].map(cell => cell.firstChild.textContent)"
    assert "100.0" in browser.run(best)
    assert browser.run("document.querySelectorAll('#to-training figure').length") == 1
    labels = browser.run("[...document.querySelectorAll('figure svg')].map(svg => svg.ariaLabel)")
    assert [label.split(" of ")[0].split(" on ")[0] for label in labels] == [
        *("scores", "validation score by layer", "heat map", "training")
    ]
    texts = browser.run("[...document.querySelectorAll('figure svg text')].map(t => t.textContent)")
    for text in ("accuracy, %", "points below best", "layer (all: learned sum)", "updates"):
        assert text in texts
    assert "runs/pretraining" in texts
    assert "#ffffff; opacity" not in (tmp_path / "out/report.html").read_text()  # a legend's box
    ids = browser.run("[...document.querySelectorAll('[id]')].map(element => element.id)")
    assert len(set(ids)) == len(ids)
    assert browser.complaints == []


def test_probes_of_one_name_are_told_apart(tmp_path):
    for folder in ("one", "two"):
        leave_probe(tmp_path / folder, "key", "giantsteps-key", "same")
    text = run([tmp_path], tmp_path / "out", resamples=9, no_plot=True)
    assert "| same (one) |" in text
    assert "| same (two) |" in text


def test_tasks_of_one_name_are_told_apart(tmp_path):
    leave_probe(tmp_path / "a", "multi-class", "custom", "first")
    leave_probe(tmp_path / "b", "regression", "custom", "first")
    leave_probe(tmp_path / "c", "multi-class", "custom", "second")
    text = run([tmp_path], tmp_path / "out", resamples=9, no_plot=True)
    header = "| model | custom (multi-class): accuracy | custom (regression): r2 valence | "
    assert header + "custom (regression): r2 arousal |" in text.splitlines()
    # The same kind and classes, but other files, and then other labels of the same files.
    for folder, clips, shift in (("d", 30, 0), ("e", 40, 1)):
        leave_probe(tmp_path / folder, "multi-class", "custom", folder)
        found = predictions("multi-class", clips, clips)
        found = replace(found, targets=(found.targets + shift) % 3)
        about = json.loads((tmp_path / folder / "probe.json").read_text())
        scores = evaluate(task("multi-class"), found)
        write_scores(tmp_path / folder, "test", about, scores, found)
    run([tmp_path], tmp_path / "out", resamples=9, no_plot=True)
    with (tmp_path / "out/report.csv").open() as file:
        tasks = {row["folder"][-1]: row["task"] for row in csv.DictReader(file)}
    assert tasks["a"] == tasks["c"]
    assert len(set(tasks.values())) == 4


def test_a_figure_that_is_not_defined(tmp_path):
    leave_probe(tmp_path / "a", "multi-label", "mtt", "x")
    found = predictions("multi-label")
    found.outputs[3] = np.nan
    about = json.loads((tmp_path / "a/probe.json").read_text())
    write_scores(tmp_path / "a", "test", about, evaluate(task("multi-label"), found), found)
    text = run([tmp_path], tmp_path / "out", resamples=9, no_plot=True)
    assert "| x | not defined, layer 2 | not defined, layer 2 |" in text.splitlines()
    leave_probe(tmp_path / "b", "multi-label", "mtt", "y")
    run([tmp_path], tmp_path / "out", resamples=9, no_plot=True)
    page = (tmp_path / "out/report.html").read_text()
    assert page.count('data-value="" class="number">not defined, layer 2') == 2  # sorts last
    with (tmp_path / "out/report.csv").open() as file:
        assert [row["value"] for row in csv.DictReader(file) if row["model"] == "x"] == ["", ""]


@pytest.mark.parametrize(
    ("file", "damage"),
    [
        *(("test.json", text) for text in (b"", b"\xff\xfe{", b"{}", b"[]", b"\0" * 50)),
        ("test.json", b"[" * 100_000),
        ("test.json", b'{"classes": 3, "targets": [], "kind": "key", "window_seconds": "x"}'),
        ("probe.json", b'{"rows'),
        ("test_predictions.npz", b"PK\x03\x04" + b"x" * 40),
    ],
)
def test_damaged_results_end_in_one_line(tmp_path, file, damage):
    leave_probe(tmp_path / "a", "key", "giantsteps-key", "x")
    (tmp_path / "a" / file).write_bytes(damage)
    with pytest.raises(InputError, match=re.escape(str(tmp_path / "a"))) as error:
        run([tmp_path], tmp_path / "out", resamples=9, no_plot=True)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 1000


def test_scores_of_other_predictions_or_heads_are_named(tmp_path):
    leave_probe(tmp_path / "a", "key", "giantsteps-key", "x")
    file = tmp_path / "a/probe.json"
    before = file.read_text()
    file.write_text(json.dumps({**json.loads(before), "best_epoch": 1_000}))
    text = run([tmp_path], tmp_path / "out", resamples=9, no_plot=True)
    assert "giantsteps-key: x was trained further after its score on test" in text
    file.write_text(before)
    assert "trained further" not in run([tmp_path], tmp_path / "out", resamples=9, no_plot=True)
    file = tmp_path / "a/test.json"
    about = json.loads(file.read_text())
    about["metrics"]["weighted_key_score"] += 0.01
    file.write_text(json.dumps(about))
    with pytest.raises(InputError, match=r"a: test\.json says weighted_key_score .*; score again"):
        run([tmp_path], tmp_path / "out", resamples=9, no_plot=True)


def test_probes_of_other_audio_are_named(tmp_path):
    for name in ("a", "b", "c"):
        leave_probe(tmp_path / name, "key", "gs", name)
        file = tmp_path / name / "probe.json"
        noted = {"train": "f" if name == "b" else "e"}
        file.write_text(json.dumps(json.loads(file.read_text()) | {"audio": noted}))
    text = run([tmp_path], tmp_path / "out", no_plot=True)
    assert "- gs: the train files of b are not those of the other models: other rec" in text
    assert text.count("are not those of") == 1


def test_damage_is_named(tmp_path):
    leave_probe(tmp_path / "a", "key", "giantsteps-key", "x")
    (tmp_path / "a/test_predictions.npz").write_bytes(b"no")
    with pytest.raises(InputError, match=r"test_predictions\.npz: not the predictions of a probe"):
        run([tmp_path], tmp_path / "out", resamples=9, no_plot=True)
    (tmp_path / "a/test.json").write_text("{")
    with pytest.raises(InputError, match=r"test\.json: not JSON"):
        run([tmp_path], tmp_path / "out", resamples=9, no_plot=True)
    (tmp_path / "a/test.json").unlink()
    with pytest.raises(InputError, match=r"1 have no test\.json"):
        run([tmp_path], tmp_path / "out", resamples=9, no_plot=True)
    assert json.loads((tmp_path / "a/probe.json").read_text())["rows"][1]["score"] is None


def test_front_ends_are_compared_with_what_is_known(tmp_path):
    leave_probe(tmp_path / "runs/a", "multi-class", "gtzan-genre", "mfcc")
    leave_probe(tmp_path / "runs/b", "multi-class", "vocalset-singer", "mfcc")
    leave_probe(tmp_path / "runs/c", "multi-label", "mtt", "first")
    text = run([tmp_path / "runs"], tmp_path / "out", resamples=50, no_plot=True)
    found = predictions("multi-class")
    most = 100 * np.bincount(found.targets).max() / len(found.targets)
    here = 100 * (found.outputs.argmax(1) == found.targets).mean()
    (line,) = (line for line in text.splitlines() if line.startswith("| mfcc | gtzan-genre: acc"))
    assert line.startswith(f"| mfcc | gtzan-genre: accuracy | {here:.1f} | {most:.1f} | 44.8 | 7")
    assert line.endswith("| as published |")
    assert "| mfcc | vocalset-singer: accuracy |" in text
    assert "Not probed: chroma." in text
    assert "Is the pipeline right?" in (tmp_path / "out/report.html").read_text()


@pytest.mark.parametrize(
    ("value", "own", "others", "said"),
    [
        (0.46, 0.448, 0.74, "as published"),
        (0.7, 0.448, 0.74, "+25.2: other data"),
        (0.2, 0.448, 0.74, "no better than a constant"),
        (0.5, math.nan, 0.74, "as expected"),
        (0.8, math.nan, 0.74, "above a published model"),
    ],
)
def test_verdicts_on_front_ends(value, own, others, said):
    figure = Figure(value, value - 0.04, value + 0.04)
    assert floors.verdict(figure, 0.25, own, others).startswith(said)


def test_a_constant_answer_to_tags_has_the_precision_of_chance(tmp_path):
    leave_probe(tmp_path, "multi-label", "mtt", "mfcc")
    (probe,) = find([tmp_path], "test", 10, 0)
    found = predictions("multi-label")
    share = found.targets.mean(0).mean()
    assert floors.constant("macro_roc_auc", found, probe) == pytest.approx(0.5)
    assert floors.constant("macro_average_precision", found, probe) == pytest.approx(share)
