"""Compare encoders on several tasks: means over probes, paired differences, mean ranks."""

from collections.abc import Sequence

import numpy as np

from music_ssl_fairseq.errors import InputError
from music_ssl_fairseq.report import bootstrap
from music_ssl_fairseq.report.gather import Figure, Probe


def mean(probes: Sequence[Probe], metric: str) -> Figure:
    """Average the scores of an encoder's probes of one task, which have seeds of their own.

    Raises:
        InputError: if they were not scored on the same files.
    """
    if len(probes) == 1:
        return probes[0].figures[metric]
    values = _mean_draws(probes, metric, probes[0])
    return Figure(float(values[0]), *bootstrap.interval(metric, values))


def difference(some: Sequence[Probe], others: Sequence[Probe], metric: str) -> Figure:
    """Compute the mean of `some` minus that of `others` with its 95 % interval.

    All are scored on the same draws of the same clips, which narrows the interval.

    Raises:
        InputError: if they were not scored on the same files.
    """
    values = _mean_draws(some, metric, some[0]) - _mean_draws(others, metric, some[0])
    return Figure(float(values[0]), *bootstrap.ends(metric, values))


def _mean_draws(probes: Sequence[Probe], metric: str, first: Probe) -> np.ndarray:
    for probe in probes:
        if probe.content != first.content:
            raise InputError(
                f"{first.folder} and {probe.folder} were scored on other files: score again"
            )
    return np.mean([probe.draws[metric] for probe in probes], axis=0)


def mean_ranks(values: Sequence[Sequence[float]]) -> list[float]:
    """Average each model's rank over tasks: 1 is the best, equal figures share their ranks' mean.

    Args:
        values: `[models][tasks]`, higher is better. NaN ranks last.
    """
    from scipy.stats import rankdata

    losses = np.nan_to_num(-np.asarray(values, np.float64), nan=np.inf)
    return rankdata(losses, axis=0).mean(axis=1).tolist()
