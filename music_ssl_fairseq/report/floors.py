"""Compare front ends with known figures, which checks data and pipeline.

MFCC and chroma need no training, so their scores depend on the data, its splits and the probe
alone. A constant answer is the least that a probe may reach. Four tasks have published figures of
MFCC and chroma; on the others they should lie below the published models.
"""

import csv
import math
from collections.abc import Sequence
from dataclasses import replace
from importlib.resources import files
from typing import NamedTuple

import numpy as np

from music_ssl_fairseq.probing.scoring.metrics import statistic
from music_ssl_fairseq.probing.scoring.predictions import Predictions
from music_ssl_fairseq.probing.spec import KINDS
from music_ssl_fairseq.report.gather import Figure, Probe, predictions_of


class PublishedModel(NamedTuple):
    """A published model."""

    model: str  # name that its authors use
    source: str  # paper and table
    figures: dict[tuple[str, str], float]  # (task, metric) -> fraction, of those in the source


def _read() -> list[PublishedModel]:
    text = files(__package__).joinpath("published.csv").read_text("utf-8")
    found = []
    for row in csv.DictReader(text.splitlines()):
        model, source = row.pop("model"), row.pop("source")
        columns = {(task, metric): row[f"{task} {metric}"] for task, metric in map(str.split, row)}
        figures = {column: float(percent) / 100 for column, percent in columns.items() if percent}
        found.append(PublishedModel(model, source, figures))
    return found


PUBLISHED = _read()
"""Published figures. The papers have their own probes, windows and, in part, data. Figures of the
same weights differ between papers by more than a point, so models of different sources are not one
ranking. The first has a figure of each task."""

TASKS = tuple(dict.fromkeys(task for task, _ in PUBLISHED[0].figures))
"""The thirteen tasks, in the usual order."""

BASELINES = ("mfcc", "chroma", "logmel", "cqt")
TOLERANCE = 0.05
"""Largest difference from a published figure: windows, grids and front ends differ a little."""
HEADER = (
    *("front end", "task", "here", "constant answer", "published front end"),
    *("least of the published models", "verdict"),
)


def rows(probes: Sequence[Probe], split: str) -> list[list[str]]:
    """Return a row per front end, task and metric; empty if no task is one of the thirteen."""
    found = []
    for probe in probes:
        front_end = probe.about["upstream"]
        if probe.task not in TASKS or front_end not in BASELINES:
            continue
        predictions = predictions_of(probe.folder, split)
        for metric, figure in probe.figures.items():
            least = constant(metric, predictions, probe)
            own, others = _published(front_end, probe.task, metric)
            cells = (figure.value, least, own, others)
            shown = ["" if math.isnan(x) else f"{100 * x:.1f}" for x in cells]
            named = [probe.model, f"{probe.task}: {metric}"]
            found.append([*named, *shown, verdict(figure, least, own, others)])
    return found


def hint(probes: Sequence[Probe]) -> str:
    """Say which front ends are missing, if tasks of the thirteen are there without them."""
    lacking = [
        name
        for name in BASELINES[:2]
        if any(probe.task in TASKS for probe in probes)
        and all(probe.about["upstream"] != name for probe in probes)
    ]
    if not lacking:
        return ""
    return (
        f"Not probed: {' and '.join(lacking)}. They need no training, and their scores say "
        f"whether data and pipeline are right: probe --upstream {' '.join(lacking)} as well."
    )


def constant(metric: str, predictions: Predictions, probe: Probe) -> float:
    """Compute the score of the best answer that is the same for every clip; NaN for beats."""
    kind, classes = KINDS[probe.about["kind"]], tuple(probe.about["classes"])
    if kind.has_beats:
        return math.nan
    if kind.has_numbers:
        return 0.0  # of R2, by its definition
    answers = np.zeros((1, len(classes))) if kind.many_classes else np.eye(len(classes))
    once = np.ones((1, predictions.num_groups), np.int64)
    found = []
    for answer in answers:
        same = replace(predictions, outputs=np.tile(answer, (len(predictions.names), 1)))
        found.append(float(statistic(metric, same, once, classes, ())[0]))
    return max(found)


def _published(front_end: str, task: str, metric: str) -> tuple[float, float]:
    """Return a front end's published figure, and the least of all models'; NaN for none."""
    own, others = math.nan, math.nan
    for model in PUBLISHED:
        figure = model.figures.get((task, metric), math.nan)
        if model.model.lower() == front_end:
            own = figure
        elif model.model.lower() not in BASELINES:
            others = float(np.fmin(others, figure))
    return own, others


def verdict(here: Figure, least: float, own: float, others: float) -> str:
    """Say in words whether a front end's figure is what it should be."""
    if not math.isfinite(here.value):
        return "not defined"
    if here.low - TOLERANCE <= own <= here.high + TOLERANCE:
        return "as published"
    if here.value <= least:
        return "no better than a constant answer: check that labels belong to their files"
    if math.isfinite(own):
        return f"{100 * (here.value - own):+.1f}: other data, another split, or a fault"
    if here.value > others:
        return "above a published model: look for songs in two splits"
    return "as expected"
