"""Metrics against scikit-learn and mir_eval; the fast rankings against both."""

import mir_eval
import numpy as np
import pytest
from sklearn import metrics as sklearn

from music_ssl_fairseq.data.probing_task import ProbingTask
from music_ssl_fairseq.errors import InputError
from music_ssl_fairseq.probing.metrics import beat_counts, evaluate
from music_ssl_fairseq.probing.predictions import Predictions
from music_ssl_fairseq.probing.ranking import average_precision, macro, roc_auc

RNG = np.random.default_rng(7)
CLASSES = ("a", "b", "c", "d")


def predictions(outputs, targets, groups=None, windows=None) -> Predictions:
    count = len(outputs)
    return Predictions(
        [f"{i}.wav" for i in range(count)],
        np.arange(count) if groups is None else np.asarray(groups),
        np.asarray(outputs, np.float64),
        np.asarray(targets),
        np.ones(count, np.int64) if windows is None else np.asarray(windows),
    )


def test_accuracy_per_clip_and_per_song():
    outputs, targets = RNG.standard_normal((30, 4)), RNG.integers(0, 4, 10)[np.arange(30) % 10]
    groups, windows = np.arange(30) % 10, RNG.integers(1, 5, 30)
    task = ProbingTask("t", "multi-class", "accuracy", CLASSES)
    scores = evaluate(task, predictions(outputs, targets, groups, windows))
    assert scores.values["accuracy"] == pytest.approx(
        sklearn.accuracy_score(targets, outputs.argmax(1))
    )
    songs = [np.average(outputs[groups == g], 0, windows[groups == g]) for g in range(10)]
    assert scores.values["group_accuracy"] == pytest.approx(
        sklearn.accuracy_score(targets[:10], np.argmax(songs, 1))
    )


def test_a_class_that_is_not_in_the_split_is_named():
    task = ProbingTask("t", "multi-class", "accuracy", CLASSES)
    assert evaluate(task, predictions(np.eye(4)[:3], [0, 1, 3])).absent == ["c"]


def test_tagging_leaves_out_and_names_absent_classes():
    outputs, targets = 30 * RNG.standard_normal((40, 4)), RNG.random((40, 4)) < 0.3
    outputs[:8] = outputs[8:16]  # ties
    targets[:, 1], targets[:, 3] = False, True
    task = ProbingTask("t", "multi-label", "macro_roc_auc", CLASSES)
    scores = evaluate(task, predictions(outputs, targets))
    there = [0, 2]
    for name, function in (
        ("macro_roc_auc", sklearn.roc_auc_score),
        ("macro_average_precision", sklearn.average_precision_score),
    ):
        expected = [function(targets[:, c], outputs[:, c]) for c in there]
        assert scores.values[name] == pytest.approx(np.mean(expected), abs=1e-6)
        assert list(scores.per_class[name]) == ["a", "c"]
        assert macro(name, outputs, targets)[0] == pytest.approx(np.mean(expected), abs=1e-9)
    assert scores.absent == ["b", "d"]


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [(roc_auc, sklearn.roc_auc_score), (average_precision, sklearn.average_precision_score)],
)
def test_weighted_rankings_are_scikit_learn_s(ours, theirs):
    scores, positive = RNG.integers(0, 12, 50) / 3.0, RNG.random(50) < 0.4
    weights = RNG.integers(0, 4, (5, 50)).astype(float)
    found = ours(scores, positive, weights)
    expected = [theirs(positive, scores, sample_weight=row) for row in weights]
    np.testing.assert_allclose(found, expected, rtol=1e-12)
    assert np.isnan(ours(scores, np.zeros(50, bool), weights)).all()


def test_key_score_is_mir_eval_s():
    classes = ("A minor", "Bb major", "C major", "F# minor", "G major")
    outputs, targets = RNG.standard_normal((40, 5)), RNG.integers(0, 5, 40)
    task = ProbingTask("t", "key", "weighted_key_score", classes)
    found = evaluate(task, predictions(outputs, targets)).values["weighted_key_score"]
    claimed = outputs.argmax(1)
    expected = [
        mir_eval.key.weighted_score(classes[t], classes[c])
        for t, c in zip(targets, claimed, strict=True)
    ]
    assert found == pytest.approx(np.mean(expected))
    assert 0 < found < 1
    wrong = ProbingTask("t", "key", "weighted_key_score", ("C major", "blue"))
    with pytest.raises(InputError, match="is no key"):
        evaluate(wrong, predictions(outputs[:, :2], targets % 2))


def test_r2_of_each_target():
    targets = RNG.standard_normal((25, 2))
    outputs = targets + RNG.standard_normal((25, 2)) * (0.3, 1.5)
    task = ProbingTask("t", "regression", "r2", targets=("arousal", "valence"))
    scores = evaluate(task, predictions(outputs, targets)).values
    expected = sklearn.r2_score(targets, outputs, multioutput="raw_values")
    np.testing.assert_allclose([scores["r2_arousal"], scores["r2_valence"]], expected, rtol=1e-6)
    assert scores["r2"] == pytest.approx(expected.mean())


def test_beats_pooled_and_per_file():
    task = ProbingTask("t", "beats", "f_measure")
    files = []
    for _ in range(6):
        reference = np.arange(0.4, 20, RNG.uniform(0.4, 0.8))
        estimated = reference + RNG.normal(0, 0.05, len(reference))
        files.append((reference, np.sort(estimated[RNG.random(len(reference)) < 0.9])))
    counted = [beat_counts(*pair) for pair in files]
    scores = evaluate(
        task, predictions([counts for counts, _ in counted], [m for _, m in counted])
    ).values
    for tolerance, suffix in ((0.07, ""), (0.02, "_20ms")):
        matched = sum(len(mir_eval.util.match_events(*pair, tolerance)) for pair in files)
        total = sum(len(reference) + len(estimated) for reference, estimated in files)
        assert scores[f"f_measure{suffix}"] == pytest.approx(2 * matched / total)
        per_file = [
            mir_eval.beat.evaluate(*pair, f_measure_threshold=tolerance)["F-measure"]
            for pair in files
        ]
        assert scores[f"f_measure_per_file{suffix}"] == pytest.approx(np.mean(per_file))
    assert scores["f_measure_20ms"] < scores["f_measure"] < 1
