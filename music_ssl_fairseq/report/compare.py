"""Compare encoders on several tasks: means over probes, paired differences, mean ranks."""

from collections.abc import Sequence

import numpy as np

from music_ssl_fairseq.errors import InputError
from music_ssl_fairseq.report import bootstrap
from music_ssl_fairseq.report.gather import Figure, Probe, Unit, predictions_of


def mean(
    probes: Sequence[Probe],
    metric: str,
    split: str = "test",
    unit: Unit | None = None,
    resamples: int = 1000,
    seed: int = 0,
) -> Figure:
    """Average the scores of an encoder's probes of one task, which have seeds of their own.

    Args:
        unit: as for `gather.find`.

    Raises:
        InputError: if they were not scored on the same files.
    """
    if len(probes) == 1:
        return probes[0].figures[metric]
    values = _resampled(probes, metric, split, unit, resamples, seed)
    return Figure(float(values[0]), *bootstrap.ends_in_range(metric, values))


def difference(
    some: Sequence[Probe],
    others: Sequence[Probe],
    metric: str,
    split: str = "test",
    unit: Unit | None = None,
    resamples: int = 1000,
    seed: int = 0,
) -> Figure:
    """Compute the mean of `some` minus that of `others` with its 95 % interval.

    All are scored on the same draws of the same clips, which narrows the interval.

    Raises:
        InputError: if they were not scored on the same files.
    """
    values = _resampled([*some, *others], metric, split, unit, resamples, seed, len(some))
    return Figure(float(values[0]), *bootstrap.ends(metric, values))


def _resampled(
    probes: Sequence[Probe],
    metric: str,
    split: str,
    unit: Unit | None,
    resamples: int,
    seed: int,
    count: int | None = None,
) -> np.ndarray:
    """Average `bootstrap.resampled`; with `count`, the first ones' mean minus the others'."""
    predictions = [predictions_of(probe.folder, split, unit) for probe in probes]
    for probe, of_probe in zip(probes, predictions, strict=True):
        if of_probe.names != predictions[0].names:
            raise InputError(
                f"{probes[0].folder} and {probe.folder} were scored on other files: score again"
            )
    classes, targets = tuple(probes[0].about["classes"]), tuple(probes[0].about["targets"])
    values = np.stack(
        [bootstrap.resampled(metric, p, classes, targets, resamples, seed) for p in predictions]
    )
    if count is None:
        return values.mean(0)
    return values[:count].mean(0) - values[count:].mean(0)


def mean_ranks(values: Sequence[Sequence[float]]) -> list[float]:
    """Average each model's rank over tasks: 1 is the best, equal figures share their ranks' mean.

    Args:
        values: `[models][tasks]`, higher is better. NaN ranks last.
    """
    from scipy.stats import rankdata

    losses = np.nan_to_num(-np.asarray(values, np.float64), nan=np.inf)
    return rankdata(losses, axis=0).mean(axis=1).tolist()
