"""The judge's tables: figures with intervals and mean ranks, and differences of pairs."""

import csv
import io
import math
from collections.abc import Sequence
from itertools import chain
from pathlib import Path

from compare import difference, mean, mean_ranks
from tasks import TASKS, unit

from music_ssl_fairseq.report.gather import Figure, Probe, find
from music_ssl_fairseq.report.tables import document, percent, table
from music_ssl_fairseq.runtime.files import atomic_path

FLOORS = ("mfcc", "chroma")
RANDOM = "random:"
RESAMPLES, SEED = 1000, 0
METRICS = {task.name: task.metric for task in TASKS}
Probes = list[Probe]
"""One encoder's probes of one task, one per seed."""
Table = dict[str, dict[str, Probes]]
"""Model, task, probes."""


def write_tables(
    folders: Sequence[Sequence[Path]],
    names: Sequence[str],
    out: Path,
    form: str,
    against: str | None,
) -> str:
    """Write judge.md and judge.csv; the former's text.

    Args:
        folders: per model, in the order of the rows, one per seed, with a probe per task in it.
        against: the model whose figures are taken off; None for the better floor of each task.
    """
    models: Table = {}
    for folder in chain.from_iterable(folders):
        for probe in find([folder], "test", RESAMPLES, SEED, unit):
            if probe.task in names:
                models.setdefault(probe.model, {}).setdefault(probe.task, []).append(probe)
    text = _markdown(models, names, form, against)
    for ending, contents in (("md", text), ("csv", _comma_separated(models))):
        with atomic_path(out / f"judge.{ending}") as temporary:
            temporary.write_text(contents, encoding="utf-8")
    return text


def _markdown(models: Table, names: Sequence[str], form: str, against: str | None) -> str:
    header = [f"{name}: {METRICS[name]}" for name in names]
    values = [[_figure(probes[name], name).value for name in names] for probes in models.values()]
    ranks = mean_ranks(values)
    rows = [
        [model, f"{rank:.2f}", *(_cell(probes[name], name) for name in names)]
        for (model, probes), rank in zip(models.items(), ranks, strict=True)
    ]
    blocks = [
        f"# Open tasks, {form} form",
        "Percent on the test split, of the head that validation chose, averaged over the probes' "
        f"seeds; in brackets the 95 % interval of a bootstrap ({RESAMPLES} resamples) over "
        "what the clips are parts of: scores, instruments, tracks; then each seed's layer. Rank: "
        "the mean over the tasks, among these rows; 1 is the best.",
        table(["encoder", "rank", *header], rows),
    ]
    for title, pairs in _comparisons(models, names, against):
        rows = [
            [
                label,
                *(
                    _difference(*pair, name) if pair else ""
                    for name, pair in zip(names, row, strict=True)
                ),
            ]
            for label, row in pairs
        ]
        blocks += [f"## {title}", "Both on the same draws.", table(["", *names], rows)]
    return document(blocks)


Pair = tuple[Probes, Probes]


def _comparisons(
    models: Table, names: Sequence[str], against: str | None
) -> list[tuple[str, list[tuple[str, list[Pair]]]]]:
    """Return a title, and for each row its label and a pair of probes per task."""
    found = []
    floors = [against] if against else [name for name in FLOORS if name in models]
    rows = []
    for model, probes in models.items():
        if model in floors or not floors:
            continue
        best = [max((models[f][n] for f in floors), key=_worth) for n in names]
        rows.append((model, [(probes[n], b) for n, b in zip(names, best, strict=True)]))
    if rows:
        title = against or ("better of MFCC and chroma" if len(floors) > 1 else floors[0])
        found.append((f"Difference from {title}", rows))
    rows = [
        (model, [(probes[n], models[RANDOM + model][n]) for n in names])
        for model, probes in models.items()
        if RANDOM + model in models
    ]
    if rows:
        found.append(("Difference from the same encoder with random weights", rows))
    return found


def _figure(probes: Probes, task: str) -> Figure:
    return mean(probes, METRICS[task])


def _worth(probes: Probes) -> float:
    """Return the figure that floors are compared by; an undefined one is below all others."""
    value = _figure(probes, probes[0].task).value
    return value if math.isfinite(value) else -math.inf


def _layers(probes: Probes) -> str:
    return ", ".join(str(probe.about["layer"]) for probe in probes)


def _cell(probes: Probes, task: str) -> str:
    return f"{percent(_figure(probes, task))} ({_layers(probes)})"


def _difference(some: Probes, others: Probes, task: str) -> str:
    found = difference(some, others, METRICS[task])
    if not math.isfinite(found.value):
        return percent(found)
    text = f"{100 * found.value:+.1f} [{100 * found.low:.1f}, {100 * found.high:.1f}]"
    return f"**{text}**" if found.low > 0 or found.high < 0 else text


def _comma_separated(models: Table) -> str:
    text = io.StringIO()
    lines = csv.writer(text, lineterminator="\n")
    lines.writerow(["encoder", "task", "metric", "value", "low", "high", "layer", "fingerprint"])
    for model, tasks in models.items():
        for task, probes in tasks.items():
            figure = _figure(probes, task)
            values = figure.value, figure.low, figure.high
            fingerprint = probes[0].about["fingerprint"]
            lines.writerow([model, task, METRICS[task], *values, _layers(probes), fingerprint])
    return text.getvalue()
