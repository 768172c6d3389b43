"""Metrics against scikit-learn and mir_eval, in every unit, for one head and for a grid of them."""

import mir_eval
import numpy as np
import pytest
from sklearn import metrics as sklearn

from music_ssl_fairseq.errors import InputError
from music_ssl_fairseq.probing.features.windows import FRAME_RATE
from music_ssl_fairseq.probing.scoring.metrics import beat_counts, evaluate, matched, score
from music_ssl_fairseq.probing.scoring.predictions import Predictions
from music_ssl_fairseq.probing.scoring.ranking import average_precision, macro, roc_auc
from music_ssl_fairseq.probing.scoring.results import head_scores
from music_ssl_fairseq.probing.spec import KINDS, ProbingSpec

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


def test_accuracy_per_clip_and_per_song(rng):
    outputs, targets = rng.standard_normal((30, 4)), rng.integers(0, 4, 10)[np.arange(30) % 10]
    groups, windows = np.arange(30) % 10, rng.integers(1, 5, 30)
    task = ProbingSpec("t", "multi-class", "accuracy", CLASSES)
    scores = evaluate(task, predictions(outputs, targets, groups, windows))
    assert scores.values["accuracy"] == pytest.approx(
        sklearn.accuracy_score(targets, outputs.argmax(1))
    )
    songs = [np.average(outputs[groups == g], 0, windows[groups == g]) for g in range(10)]
    assert scores.values["group_accuracy"] == pytest.approx(
        sklearn.accuracy_score(targets[:10], np.argmax(songs, 1))
    )


@pytest.mark.parametrize("name", ["macro_f1", "r2_valence", "f_measure_5ms", "group_accurcy"])
def test_an_unknown_metric_is_refused(name):
    task = ProbingSpec("t", "multi-class", "accuracy", CLASSES)
    with pytest.raises(ValueError, match=name):
        score(name, task, predictions(np.eye(4), np.arange(4)))


def test_a_class_that_is_not_in_the_split_is_named():
    task = ProbingSpec("t", "multi-class", "accuracy", CLASSES)
    assert evaluate(task, predictions(np.eye(4)[:3], [0, 1, 3])).absent == ["c"]


def test_tagging_leaves_out_and_names_absent_classes(rng):
    outputs, targets = 30 * rng.standard_normal((40, 4)), rng.random((40, 4)) < 0.3
    outputs[:8] = outputs[8:16]  # ties
    targets[:, 1], targets[:, 3] = False, True
    task = ProbingSpec("t", "multi-label", "macro_roc_auc", CLASSES)
    scores = evaluate(task, predictions(outputs, targets))
    there = [0, 2]
    for name, function in (
        ("macro_roc_auc", sklearn.roc_auc_score),
        ("macro_average_precision", sklearn.average_precision_score),
    ):
        expected = [function(targets[:, c], outputs[:, c]) for c in there]
        assert scores.values[name] == pytest.approx(np.mean(expected), abs=1e-6)
        assert list(scores.per_class[name]) == ["a", "c"]
        assert macro(name, outputs, targets, np.ones((1, len(outputs))))[0] == pytest.approx(
            np.mean(expected), abs=1e-9
        )
    assert scores.absent == ["b", "d"]


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [(roc_auc, sklearn.roc_auc_score), (average_precision, sklearn.average_precision_score)],
)
def test_weighted_rankings_are_scikit_learn_s(rng, ours, theirs):
    scores, positive = rng.integers(0, 12, 50) / 3.0, rng.random(50) < 0.4
    weights = rng.integers(0, 4, (5, 50)).astype(float)
    found = ours(scores, positive, weights)
    expected = [theirs(positive, scores, sample_weight=one) for one in weights]
    np.testing.assert_allclose(found, expected, rtol=1e-12)
    assert np.isnan(ours(scores, np.zeros(50, bool), weights)).all()


def test_key_score_is_mir_eval_s(rng):
    classes = ("A minor", "Bb major", "C major", "F# minor", "G major")
    outputs, targets = rng.standard_normal((40, 5)), rng.integers(0, 5, 40)
    task = ProbingSpec("t", "key", "weighted_key_score", classes)
    found = evaluate(task, predictions(outputs, targets)).values["weighted_key_score"]
    claimed = outputs.argmax(1)
    expected = [
        mir_eval.key.weighted_score(classes[t], classes[c])
        for t, c in zip(targets, claimed, strict=True)
    ]
    assert found == pytest.approx(np.mean(expected))
    assert 0 < found < 1
    wrong = ProbingSpec("t", "key", "weighted_key_score", ("C major", "blue"))
    with pytest.raises(InputError, match="is no key"):
        evaluate(wrong, predictions(outputs[:, :2], targets % 2))


@pytest.mark.parametrize("unit", [1e-6, 6e-4, 1.0, 1e6])
@pytest.mark.parametrize("offset", [0.0, 1e3])
def test_r2_in_any_unit(rng, unit, offset):
    truth = rng.standard_normal((25, 2)) + offset
    outputs, truth = unit * (truth + rng.standard_normal((25, 2)) * (0.3, 1.5)), unit * truth
    task = ProbingSpec("t", "regression", "r2", targets=("arousal", "valence"))
    scores = evaluate(task, predictions(outputs, truth)).values
    expected = sklearn.r2_score(truth, outputs, multioutput="raw_values")
    found = [scores["r2_arousal"], scores["r2_valence"]]
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    assert scores["r2"] == pytest.approx(expected.mean())


def test_r2_of_a_target_that_does_not_vary_is_not_a_number():
    task = ProbingSpec("t", "regression", "r2", targets=("a",))
    assert np.isnan(score("r2", task, predictions([[0.1]] * 9, [[0.3]] * 9)))


@pytest.mark.parametrize("unit", [1e-6, 1.0, 1e6])
def test_accuracies_and_rankings_in_any_unit(rng, unit):
    outputs, tags = rng.standard_normal((60, 4)), rng.random((60, 4)) < 0.3
    labels = rng.integers(0, 4, 60)
    task = ProbingSpec("t", "multi-label", "macro_roc_auc", CLASSES)
    found = evaluate(task, predictions(unit * outputs, tags)).values
    assert found["macro_roc_auc"] == pytest.approx(sklearn.roc_auc_score(tags, outputs))
    expected = sklearn.average_precision_score(tags, outputs)
    assert found["macro_average_precision"] == pytest.approx(expected)
    task = ProbingSpec("t", "multi-class", "accuracy", CLASSES)
    found = evaluate(task, predictions(unit * outputs, labels)).values
    assert found["accuracy"] == pytest.approx(sklearn.accuracy_score(labels, outputs.argmax(1)))


@pytest.mark.parametrize("scorable", [0, 1])
def test_tagging_with_one_scorable_tag_or_none(rng, scorable):
    outputs, targets = rng.standard_normal((20, 4)), np.zeros((20, 4), bool)
    targets[:5, :scorable] = True
    task = ProbingSpec("t", "multi-label", "macro_roc_auc", CLASSES)
    scores = evaluate(task, predictions(outputs, targets))
    assert scores.absent == list(CLASSES[scorable:])
    for name, function in (
        ("macro_roc_auc", sklearn.roc_auc_score),
        ("macro_average_precision", sklearn.average_precision_score),
    ):
        expected = function(targets[:, 0], outputs[:, 0]) if scorable else np.nan
        assert scores.values[name] == pytest.approx(expected, nan_ok=True)
        assert list(scores.per_class[name]) == list(CLASSES[:scorable])


class Split(list):
    """What selection asks of a split: as many names as there are clips, which are songs."""

    def __init__(self, task: ProbingSpec, targets: np.ndarray):
        super().__init__(range(len(targets)))
        self.spec, self.manifest, self.group_index = task, self, np.arange(len(targets))
        self.targets = targets

    def name(self, index: int) -> str:
        return f"{index}.wav"


class Grid:
    """A collector of heads whose outputs `[heads, clips, ...]` are given."""

    def __init__(self, task: ProbingSpec, outputs: np.ndarray, targets: np.ndarray, beats=()):
        self.dataset, self.outputs, self.beats = self, outputs, beats
        self.split, self.clips = Split(task, targets), range(len(targets))

    def sums(self):
        return 3 * self.outputs, np.full(len(self.clips), 3)

    def activations(self, clip):
        return self.outputs[:, clip]

    def beat_times(self, clip):
        return self.beats[clip]


def truth(rng: np.random.Generator, kind: str, clips: int) -> np.ndarray:
    if kind == "multi-label":
        return rng.random((clips, 3)) < 0.4
    if kind == "regression":
        return rng.standard_normal((clips, 3))
    return rng.integers(0, 3, clips)


@pytest.mark.parametrize(
    ("kind", "metric"),
    [(k, m) for k, v in KINDS.items() for m in v.choosing if not v.has_beats],
)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_selects_is_what_is_reported(rng, kind, metric, bad):
    names = ("A minor", "C major", "G major")
    task = ProbingSpec(
        "t", kind, metric, **{"targets" if kind == "regression" else "classes": names}
    )
    targets, outputs = truth(rng, kind, 30), rng.standard_normal((4, 30, 3))
    # One number of one clip is enough; its label would be the class that argmax gives for NaN.
    outputs[2, 7, 0] = bad
    found = head_scores(Grid(task, outputs, targets))
    for head, value in zip(outputs, found, strict=True):
        reported = evaluate(task, predictions(head, targets)).values[metric]
        assert value == pytest.approx(reported, nan_ok=True)
    assert np.isnan(found).tolist() == [False, False, True, False]


def test_beats_select_by_the_f_measure_of_peaks_and_never_a_diverged_head():
    task = ProbingSpec("t", "beats", "f_measure")
    beats = [np.array([0.5, 1.0, 1.5]), np.array([0.4, 1.2])]
    outputs = np.full((3, 2, 100), 0.01)
    for clip, times in enumerate(beats):
        outputs[0, clip, (times * FRAME_RATE).astype(int)] = 1
        outputs[1, clip, (times[1:] * FRAME_RATE).astype(int)] = 1
    outputs[2, 1, 50] = np.nan
    found = head_scores(Grid(task, outputs, np.zeros((2, 0)), beats))
    assert found[:2].tolist() == pytest.approx([1, 2 * 3 / (3 + 5)])
    assert np.isnan(found[2])


@pytest.mark.parametrize("tolerance", [0.07, 0.5])
def test_matched_events_are_as_many_as_mir_eval_s(rng, tolerance):
    for _ in range(50):
        reference, estimated = (
            np.sort(rng.integers(0, 600, count) / 100) for count in rng.integers(0, 30, 2)
        )
        expected = len(mir_eval.util.match_events(reference, estimated, tolerance))
        assert matched(reference, estimated, tolerance) == expected


def test_beats_pooled_and_per_file(rng):
    task = ProbingSpec("t", "beats", "f_measure")
    files = []
    for _ in range(6):
        reference = np.arange(0.4, 20, rng.uniform(0.4, 0.8))
        estimated = reference + rng.normal(0, 0.05, len(reference))
        files.append((reference, np.sort(estimated[rng.random(len(reference)) < 0.9])))
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
