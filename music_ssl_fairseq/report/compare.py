"""Compare encoders on several tasks: paired differences and mean ranks."""

from collections.abc import Sequence

import numpy as np

from music_ssl_fairseq.errors import InputError
from music_ssl_fairseq.report import bootstrap
from music_ssl_fairseq.report.gather import Figure, Probe, Unit, predictions_of


def difference(
    one: Probe,
    other: Probe,
    metric: str,
    split: str = "test",
    unit: Unit | None = None,
    resamples: int = 1000,
    seed: int = 0,
) -> Figure:
    """Compute `one` minus `other` with its 95 % interval; see `bootstrap.difference`.

    Args:
        unit: as for `gather.find`.

    Raises:
        InputError: if the two were not scored on the same files.
    """
    first, second = (predictions_of(probe.folder, split, unit) for probe in (one, other))
    if first.names != second.names:
        raise InputError(f"{one.folder} and {other.folder} were scored on other files: score again")
    classes, targets = tuple(one.about["classes"]), tuple(one.about["targets"])
    found = bootstrap.difference(metric, first, second, classes, targets, resamples, seed)
    return Figure(*found)


def mean_ranks(values: Sequence[Sequence[float]]) -> list[float]:
    """Average each model's rank over tasks: 1 is the best, equal figures share their ranks' mean.

    Args:
        values: `[models][tasks]`, higher is better. NaN ranks last.
    """
    from scipy.stats import rankdata

    losses = np.nan_to_num(-np.asarray(values, np.float64), nan=np.inf)
    return rankdata(losses, axis=0).mean(axis=1).tolist()
