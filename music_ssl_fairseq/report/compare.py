"""Compare encoders on several tasks: means over probes, paired differences, mean ranks."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from music_ssl_fairseq.errors import InputError
from music_ssl_fairseq.report import bootstrap
from music_ssl_fairseq.report.gather import Figure, Probe, Unit, predictions_of


@dataclass(frozen=True)
class Draws:
    """Which clips are scored, and how the bootstrap draws them; `unit` as for `gather.find`."""

    split: str = "test"
    unit: Unit | None = None
    resamples: int = 1000
    seed: int = 0


def mean(probes: Sequence[Probe], metric: str, draws: Draws) -> Figure:
    """Average the scores of an encoder's probes of one task, which have seeds of their own.

    Raises:
        InputError: if they were not scored on the same files.
    """
    if len(probes) == 1:
        return probes[0].figures[metric]
    values = _resampled(probes, metric, draws, probes[0])
    return Figure(float(values[0]), *bootstrap.ends_in_range(metric, values))


def difference(some: Sequence[Probe], others: Sequence[Probe], metric: str, draws: Draws) -> Figure:
    """Compute the mean of `some` minus that of `others` with its 95 % interval.

    All are scored on the same draws of the same clips, which narrows the interval.

    Raises:
        InputError: if they were not scored on the same files.
    """
    values = _resampled(some, metric, draws, some[0]) - _resampled(others, metric, draws, some[0])
    return Figure(float(values[0]), *bootstrap.ends(metric, values))


def _resampled(probes: Sequence[Probe], metric: str, draws: Draws, first: Probe) -> np.ndarray:
    """Average `bootstrap.resampled` over probes of the clips, classes and targets of `first`."""
    names = predictions_of(first.folder, draws.split).names
    classes, targets = tuple(first.about["classes"]), tuple(first.about["targets"])
    values = []
    for probe in probes:
        found = predictions_of(probe.folder, draws.split, draws.unit)
        if found.names != names:
            raise InputError(
                f"{first.folder} and {probe.folder} were scored on other files: score again"
            )
        arguments = metric, found, classes, targets, draws.resamples, draws.seed
        values.append(bootstrap.resampled(*arguments))
    return np.mean(values, axis=0)


def mean_ranks(values: Sequence[Sequence[float]]) -> list[float]:
    """Average each model's rank over tasks: 1 is the best, equal figures share their ranks' mean.

    Args:
        values: `[models][tasks]`, higher is better. NaN ranks last.
    """
    from scipy.stats import rankdata

    losses = np.nan_to_num(-np.asarray(values, np.float64), nan=np.inf)
    return rankdata(losses, axis=0).mean(axis=1).tolist()
