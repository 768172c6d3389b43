"""Measure how much units tell about pitch or loudness."""

from typing import NamedTuple

import numpy as np
from scipy.stats import entropy


class Information(NamedTuple):
    """Mutual information, in bits."""

    bits: float  # that a unit tells about the other quantity, corrected for chance
    entropy: float  # of the other quantity, in bits: an upper bound of `bits`

    @property
    def share(self) -> float:
        """`bits` as a share of `entropy`, from 0 to 1."""
        return self.bits / self.entropy if self.entropy > 0 else 0.0


def mutual_information(units: np.ndarray, others: np.ndarray) -> Information:
    """Return the mutual information of two columns of numbers from 0 on, `[n]` each.

    Few samples make independent things look related. The Miller-Madow correction takes off what is
    expected of that: half the number of occupied cells, less the rows and columns, over n.
    """
    if not len(units):
        return Information(0.0, 0.0)
    pairs = np.stack([units, others], axis=1)
    joint, of_units, of_others = map(_entropy, (pairs, units, others))
    bits = max(0.0, of_units + of_others - joint)
    return Information(min(bits, of_others), of_others)


def quantiles(values: np.ndarray, number: int) -> np.ndarray:
    """Sort values into `number` equally full steps: return `[n]` int64 from 0 on."""
    edges = np.quantile(values, np.arange(1, number) / number)
    return np.searchsorted(np.unique(edges), values, side="right")


def _entropy(values: np.ndarray) -> float:
    counts = np.unique(values, axis=0, return_counts=True)[1]
    return float(entropy(counts, base=2) + (len(counts) - 1) / (2 * len(values) * np.log(2)))
