"""How often the report's intervals hold the true figure, for each metric that it prints.

Test sets are drawn from a distribution; the true figure is the mean over many of that size (the
average precision of a rare tag is higher in a small set, whatever the head). An interval of 95 %
should hold it in about 95 % of the test sets. Seeds are fixed, so the counts are always the same;
the limits leave room for two standard errors of such a count.
"""

from collections.abc import Callable

import numpy as np
import pytest

from music_ssl_fairseq.probing.scoring.metrics import score
from music_ssl_fairseq.probing.scoring.predictions import Predictions
from music_ssl_fairseq.probing.spec import KINDS, ProbingSpec
from music_ssl_fairseq.report.bootstrap import interval, resampled

KEYS = ("A minor", "C major", "G major")
TAGS = tuple(f"tag {i}" for i in range(24))
PREVALENCE = np.geomspace(0.015, 0.08, len(TAGS))
TARGETS = ("valence",)
RESAMPLES = 100


def classes(rng: np.random.Generator, songs: int, clips: int = 3):
    """Clips of a song share its label and part of what makes its outputs wrong."""
    targets = rng.integers(0, 3, songs)
    song = np.repeat(np.arange(songs), clips)
    outputs = rng.standard_normal((songs, 3))[song] + rng.standard_normal((songs * clips, 3))
    return outputs + 1.5 * np.eye(3)[targets][song], targets[song], song


def tags(rng: np.random.Generator, songs: int):
    """Rare ones: without the shift, 70 % of the intervals of average precision hold the figure."""
    targets = rng.random((songs, len(PREVALENCE))) < PREVALENCE
    return rng.standard_normal(targets.shape) + 0.5 * targets, targets, np.arange(songs)


def numbers(rng: np.random.Generator, songs: int):
    """A target in a small unit, of which the head explains a part."""
    explained = rng.standard_normal((songs, 1))
    unit = 6e-4
    return explained * unit, (explained + rng.standard_normal((songs, 1))) * unit, np.arange(songs)


def beats(rng: np.random.Generator, songs: int):
    """Some tracks are followed well, others hardly."""
    annotated = rng.integers(30, 90, songs)
    found = rng.binomial(annotated, rng.beta(3, 1, songs))
    counts = np.stack([found, found + rng.poisson(10, songs), annotated] * 2, axis=1)
    return counts.astype(float), np.zeros((songs, 2)), np.arange(songs)


SIMULATED: dict[str, tuple[Callable, ProbingSpec, int, int]] = {
    "multi-class": (classes, ProbingSpec("t", "multi-class", "accuracy", KEYS), 150, 300),
    "key": (classes, ProbingSpec("t", "key", "weighted_key_score", KEYS), 150, 300),
    "multi-label": (tags, ProbingSpec("t", "multi-label", "macro_roc_auc", TAGS), 300, 100),
    "regression": (numbers, ProbingSpec("t", "regression", "r2", targets=TARGETS), 150, 300),
    "beats": (beats, ProbingSpec("t", "beats", "f_measure"), 150, 300),
}


def draw(kind: str, rng: np.random.Generator, songs: int) -> Predictions:
    outputs, targets, index = SIMULATED[kind][0](rng, songs)
    names = [""] * len(outputs)
    return Predictions(names, index, outputs, targets, np.ones(len(outputs), np.int64))


CASES = [(name, metric) for name, kind in KINDS.items() for metric in kind.shown]


@pytest.mark.parametrize(("kind", "metric"), [*CASES, ("regression", "r2_valence")])
def test_coverage(kind, metric):
    _, task, songs, test_sets = SIMULATED[kind]
    rng = np.random.default_rng(5)
    truth = np.mean([score(metric, task, draw(kind, rng, songs)) for _ in range(2 * test_sets)])
    found = []
    for _ in range(test_sets):
        drawn = draw(kind, rng, songs)
        values = resampled(metric, drawn, task.classes, task.targets, RESAMPLES)
        ends = interval(metric, values)
        found.append((*ends, score(metric, task, drawn)))
    low, high, point = np.array(found).T
    assert ((low <= point) & (point <= high)).all()
    coverage = np.mean((low <= truth) & (truth <= high))
    assert 0.91 <= coverage <= 0.99


def test_every_kind_is_simulated():
    assert set(SIMULATED) == set(KINDS)
