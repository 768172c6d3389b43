"""Report of a study: rows of examples/study as a table, differences, curves and costs.

A row has a JSON file per seed, `NAME-sSEED.json`, and beside it the draws of its scores, `.npz`.
"""

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from music_ssl_fairseq.errors import InputError
from music_ssl_fairseq.report.tables import table
from music_ssl_fairseq.runtime.files import atomic_path
from music_ssl_fairseq.runtime.texts import read_object

FLOORS = ("mfcc", "chroma", "logmel")
PAIRS = (
    ("Music against speech", "hubert-music", "hubert-speech"),
    ("Music against speech", "m2v-music", "m2v-speech"),
    ("Speech, then music", "hubert-speech-music", "hubert-music"),
    ("Speech, then music", "m2v-speech-music", "m2v-music"),
    ("Continuous against discrete targets", "m2v-music", "hubert-music"),
    ("Number of clusters", "hubert-k100", "hubert-music"),
    ("Number of clusters", "hubert-k2000", "hubert-music"),
    ("Features of the units", "hubert-mfcc60", "hubert-music"),
    ("Features of the units", "hubert-logmel", "hubert-music"),
    ("Features of the units", "hubert-cqt", "hubert-music"),
    ("Features of the units", "hubert-chroma", "hubert-music"),
    ("Features of the units", "hubert-mfcc-chroma", "hubert-music"),
    ("Deep features", "hubert-layer6", "hubert-music"),
    ("Deep features", "hubert-layer3", "hubert-music"),
    ("Masking", "m2v-mask50", "m2v-music"),
    ("Masking", "m2v-mask80", "m2v-music"),
    ("Masking", "m2v-span5", "m2v-music"),
    ("Masking", "m2v-span15", "m2v-music"),
    ("Masking", "hubert-fairseq-masks", "hubert-music"),
    ("Masking", "m2v-fairseq-masks", "m2v-music"),
    ("Crop length against batch", "m2v-15s", "m2v-music"),
    ("Crop length against batch", "m2v-30s", "m2v-music"),
    ("Layers of the targets", "m2v-top12", "m2v-music"),
    ("Layers of the targets", "m2v-early", "m2v-music"),
    ("Harmony", "hubert-harmonic", "hubert-music"),
    ("Harmony", "hubert-two-depths", "hubert-harmonic"),
    ("Harmony", "hubert-mel", "hubert-harmonic"),
    ("Visible frames alone", "hubert-visible", "hubert-music"),
    ("Training against random weights", "hubert-music", "random"),
    ("Training against random weights", "hubert-harmonic", "random-harmonic"),
)
"""Question, row, and the row that it is compared with."""


@dataclass(frozen=True)
class Run:
    """One row and seed: its JSON, and the draws per task, `[1 + resamples]`."""

    about: dict[str, Any]
    draws: Mapping[str, np.ndarray]


Rows = dict[str, list[Run]]
"""Runs of each row's seeds."""


def read(folder: Path) -> Rows:
    """Read a study's results, rows in the order of their names, seeds ascending.

    Raises:
        InputError: if there are none, a file is damaged, or rows were scored on other clips.
    """
    found: Rows = {}
    for file in sorted(folder.glob("*-s*.json")):
        about = read_object(file, "remove it, and run the study again")
        try:
            name, tasks = str(about["name"]), about["tasks"]
            draws: dict[str, np.ndarray] = {}
            if file.with_suffix(".npz").exists():
                with np.load(file.with_suffix(".npz"), allow_pickle=False) as saved:
                    draws = {task: saved[task].astype(np.float64) for task in tasks}
        except (KeyError, TypeError, ValueError, OSError) as error:
            raise InputError(f"{file}: damaged ({error}); remove it, and run again") from None
        found.setdefault(name, []).append(Run(about, draws))
    if not found:
        raise InputError(f"{folder}: no results of a study; run examples/study/study.sh first")
    _check_same_clips(folder, found)
    return found


def _check_same_clips(folder: Path, rows: Rows) -> None:
    contents: dict[str, str] = {}
    for run in itertools.chain.from_iterable(rows.values()):
        for task, scored in run.about["tasks"].items():
            if run.draws and contents.setdefault(task, scored["content"]) != scored["content"]:
                raise InputError(
                    f"{folder}: {run.about['name']} was scored on other clips of {task} than other "
                    "rows; keep results of each data in a folder of their own"
                )


def tasks_of(rows: Rows) -> list[str]:
    """All tasks in the order of the row that has most."""
    most = max(
        itertools.chain.from_iterable(rows.values()), key=lambda run: len(run.about["tasks"])
    )
    return list(most.about["tasks"])


def value(runs: Sequence[Run], task: str) -> float:
    """Mean of a task's metric over the seeds that have it; NaN if none has."""
    found = [run.about["tasks"][task]["value"] for run in runs if task in run.about["tasks"]]
    known = [x for x in found if x is not None]
    return float(np.mean(known)) if known else math.nan


@dataclass(frozen=True)
class Difference:
    """One row's mean minus another's, its standard error, and its p value before and after Holm."""

    question: str
    one: str
    other: str
    task: str
    value: float
    error: float
    p: float
    corrected: float = math.nan


def differences(rows: Rows, pairs: Sequence[tuple[str, str, str]] = PAIRS) -> list[Difference]:
    """Compare all pairs whose rows are there on every task, corrected by Holm's method.

    The variance is that of the mean of the draws, on the same clips for both rows, and that of
    seeds, which is pooled over the rows of a task: two seeds alone say little about it.
    """
    from scipy.stats import norm

    found = []
    for question, one, other in pairs:
        for task in tasks_of(rows):
            first, second = (_draws(rows.get(name, []), task) for name in (one, other))
            if first is None or second is None:
                continue
            drawn = first.mean(0) - second.mean(0)
            seeds = _seed_variance(rows, task)
            trained = [
                (name, x) for name, x in ((one, first), (other, second)) if _trained(rows, name)
            ]
            error = math.sqrt(drawn[1:].var(ddof=1) + sum(seeds / len(x) for _, x in trained))
            p = float(2 * norm.sf(abs(drawn[0]) / error)) if error else float(drawn[0] == 0)
            found.append(Difference(question, one, other, task, float(drawn[0]), error, p))
    corrected = holm([d.p for d in found])
    return [
        Difference(**{**vars(d), "corrected": c}) for d, c in zip(found, corrected, strict=True)
    ]


def _draws(runs: Sequence[Run], task: str) -> np.ndarray | None:
    """Draws of the seeds, `[seeds, 1 + resamples]`; None if there are none or one is not finite."""
    found = [run.draws[task] for run in runs if task in run.draws]
    return np.stack(found) if found and np.isfinite(found).all() else None


def _trained(rows: Rows, name: str) -> bool:
    return bool(rows[name][0].about.get("family"))


def _seed_variance(rows: Rows, task: str) -> float:
    """Variance between seeds of one row, pooled over rows; 0 if no row has two."""
    squares, freedom = 0.0, 0
    for runs in rows.values():
        found = _draws(runs, task)
        if found is not None and len(found) > 1:
            squares += float(((found[:, 0] - found[:, 0].mean()) ** 2).sum())
            freedom += len(found) - 1
    return squares / freedom if freedom else 0.0


def holm(p_values: Sequence[float]) -> list[float]:
    """Correct p values for many comparisons by Holm's step-down method."""
    count, largest = len(p_values), 0.0
    corrected = [0.0] * count
    for place, index in enumerate(np.argsort(p_values)):
        largest = max(largest, min(1.0, (count - place) * p_values[index]))
        corrected[index] = largest
    return corrected


def markdown(rows: Rows) -> str:
    """Format the tables: scores, differences by question, costs."""
    tasks = tasks_of(rows)
    parts = [
        "# The study's results",
        "",
        "Percent on the test split, mean over seeds. Brackets: the 95 % interval of a bootstrap "
        "over what clips are parts of, averaged over seeds, without their spread. Differences "
        "below hold both.",
        "",
        *table(
            ["row", "seeds", *tasks],
            [
                [name, str(len(runs)), *(_cell(runs, task) for task in tasks)]
                for name, runs in rows.items()
            ],
        ),
        "",
    ]
    found = differences(rows)
    for question in dict.fromkeys(d.question for d in found):
        of_question = [d for d in found if d.question == question]
        pairs = dict.fromkeys((d.one, d.other) for d in of_question)
        parts += [f"## {question}", ""]
        lines = []
        for one, other in pairs:
            cells = {d.task: d for d in of_question if (d.one, d.other) == (one, other)}
            lines.append(
                [f"{one} minus {other}", *(_difference(cells.get(task)) for task in tasks)]
            )
        parts += [*table(["", *tasks], lines), ""]
    if found:
        parts += [
            "Points, ± 1.96 standard errors of clips and seeds. Bold: p < 0.05 after Holm's "
            f"correction over all {len(found)} comparisons of this page.",
            "",
        ]
    return "\n".join([*parts, *_costs(rows)])


def _cell(runs: Sequence[Run], task: str) -> str:
    scored = [run.about["tasks"][task] for run in runs if task in run.about["tasks"]]
    if not scored or math.isnan(value(runs, task)):
        return ""
    ends = [
        np.mean([x[end] for x in scored])
        if all(x.get(end) is not None for x in scored)
        else math.nan
        for end in ("low", "high")
    ]
    layers = "/".join(dict.fromkeys(str(x["layer"]) for x in scored))
    interval = f" [{100 * ends[0]:.1f}, {100 * ends[1]:.1f}]" if np.isfinite(ends).all() else ""
    return f"{100 * value(runs, task):.1f}{interval} ({layers})"


def _difference(found: Difference | None) -> str:
    if found is None:
        return ""
    text = f"{100 * found.value:+.1f} ± {196 * found.error:.1f}"
    return f"**{text}**" if found.corrected < 0.05 else text


def _costs(rows: Rows) -> list[str]:
    header = [
        "row",
        "seed",
        "audio-seconds",
        "updates",
        "GPU-seconds",
        "side by side",
        "device",
        "held out",
    ]
    lines = []
    for name, runs in rows.items():
        for run in runs:
            about = run.about
            if not about.get("family"):
                continue
            keys = ("seed", "audio_seconds", "updates", "gpu_seconds", "streams", "device")
            lines.append([name, *(str(about.get(key, "")) for key in keys), _held_out(about)])
    return ["## Cost", "", *table(header, lines), ""] if lines else []


def _held_out(about: Mapping[str, Any]) -> str:
    last = (about.get("valid") or [{}])[-1]
    names = [n for n in last if n.startswith(("loss_m", "accuracy_m", "pred_music")) or n == "loss"]
    return ", ".join(f"{name} {last[name]:.4g}" for name in names)


def write(rows: Rows, out: Path) -> str:
    """Write study.md and differences.csv to `out`; return the Markdown."""
    text = markdown(rows)
    lines = ["one,other,task,value,error,p,corrected"]
    lines += [
        f"{d.one},{d.other},{d.task},{d.value:.5f},{d.error:.5f},{d.p:.3g},{d.corrected:.3g}"
        for d in differences(rows)
    ]
    for name, contents in (("study.md", text), ("differences.csv", "\n".join(lines) + "\n")):
        with atomic_path(out / name) as temporary:
            temporary.write_text(contents, encoding="utf-8")
    return text
