"""Paired differences between rows of a study, corrected for many comparisons."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from music_ssl_fairseq.report.study import QUESTIONS, Rows, Run, tasks_of

LEVEL = 0.05
"""Largest corrected p value of a clear difference."""

MOST_SEEDS = 100
"""Seeds per row that are tried before a difference is said to need more clips."""


@dataclass(frozen=True)
class Difference:
    """One row's mean minus another's on a task."""

    question: str
    one: str
    other: str
    task: str
    value: float
    error: float  # standard error of clips and seeds
    p: float  # before Holm's correction; `corrected` is after it
    corrected: float = math.nan
    # The least difference that would be clear with these clips and seeds
    detectable: float = math.nan
    # Seeds of each row with which this difference would be clear; infinite if no number of seeds
    # is enough, because the test clips are too few
    seeds: float = math.nan

    @property
    def clear(self) -> bool:
        return self.corrected < LEVEL


def differences(rows: Rows, pairs: Sequence[tuple[str, str, str]] = QUESTIONS) -> list[Difference]:
    """Compare all pairs whose rows are there on every task, corrected by Holm's method.

    The variance is that of the mean of the draws, on the same clips for both rows, and that of
    seeds, which is pooled over the rows of a task: two seeds alone say little about it. p values
    are Student's t with Satterthwaite's degrees of freedom, because seeds are few even so.
    """
    from scipy.stats import t as student

    found, noise = [], []
    for question, one, other in pairs:
        for task in tasks_of(rows):
            first, second = (_draws(rows.get(name, []), task) for name in (one, other))
            if first is None or second is None or unequal_audio(rows, one, other):
                continue
            drawn = first.mean(0) - second.mean(0)
            counts = [len(first), len(second)]  # random weights are a seed's as well
            of_clips = float(drawn[1:].var(ddof=1))
            per_seed, seed_freedom = _seed_variance(rows, task)
            of_seeds = sum(per_seed / count for count in counts)
            error = math.sqrt(of_clips + of_seeds)
            freedom = seed_freedom * (error**2 / of_seeds) ** 2 if of_seeds else math.inf
            p = float(2 * student.sf(abs(drawn[0]) / error, freedom)) if error else 1.0
            found.append(Difference(question, one, other, task, float(drawn[0]), error, p))
            noise.append((freedom, of_clips, per_seed, seed_freedom))
    level = LEVEL / 2 / max(1, len(found))  # Holm's strictest, on one side
    return [
        replace(
            d,
            corrected=p,
            detectable=float(student.isf(level, freedom)) * d.error,
            seeds=_seeds_needed(abs(d.value), level, *rest),
        )
        for d, p, (freedom, *rest) in zip(found, holm([d.p for d in found]), noise, strict=True)
    ]


def _seeds_needed(value: float, level: float, clips: float, seeds: float, known: float) -> float:
    """Return the seeds of each row with which a difference would be clear, or infinity.

    Each more seed also adds a degree of freedom per row to those by which `seeds`, their variance,
    is known.
    """
    from scipy.stats import t as student

    counts = np.arange(1, MOST_SEEDS + 1)
    variance = clips + 2 * seeds / counts
    freedom = np.full(MOST_SEEDS, math.inf)
    if seeds:
        freedom = np.maximum(known, 2 * (counts - 1)) * (variance * counts / (2 * seeds)) ** 2
    # NaN without a degree of freedom, where nothing is clear
    clear = value > student.isf(level, freedom) * np.sqrt(variance)
    return float(counts[clear][0]) if clear.any() else math.inf


def unequal_audio(rows: Rows, one: str, other: str) -> bool:
    """Return whether two trained rows have seen different amounts of audio."""
    seen = {
        run.about.get("audio_seconds")
        for name in (one, other)
        for run in rows.get(name, [])
        if run.trained
    }
    return len(seen) > 1


def _draws(runs: Sequence[Run], task: str) -> np.ndarray | None:
    """Stack the seeds' draws, `[seeds, 1 + resamples]`; None if there are none, or not finite."""
    found = [run.draws[task] for run in runs if task in run.draws]
    return np.stack(found) if found and np.isfinite(found).all() else None


def _seed_variance(rows: Rows, task: str) -> tuple[float, int]:
    """Pool the variance between a row's seeds, with its degrees of freedom; 0 without two seeds."""
    squares, freedom = 0.0, 0
    for runs in rows.values():
        found = _draws(runs, task)
        if found is not None and len(found) > 1:
            squares += float(((found[:, 0] - found[:, 0].mean()) ** 2).sum())
            freedom += len(found) - 1
    return (squares / freedom if freedom else 0.0), freedom


def holm(p_values: Sequence[float]) -> list[float]:
    """Correct p values for many comparisons by Holm's step-down method."""
    order = np.argsort(p_values)
    steps = np.arange(len(order), 0, -1) * np.asarray(p_values, np.float64)[order]
    corrected = np.empty(len(order))
    corrected[order] = np.minimum(1.0, np.maximum.accumulate(steps))
    return corrected.tolist()
