"""Measure how much units tell about pitch or loudness."""

from typing import NamedTuple

import numpy as np


class Information(NamedTuple):
    """Mutual information, in bits.

    Attributes:
        bits: that a unit tells about the other quantity, corrected for chance.
        entropy: of the other quantity, in bits: an upper bound of `bits`.
    """

    bits: float
    entropy: float

    @property
    def share(self) -> float:
        """`bits` as a share of `entropy`, from 0 to 1."""
        return self.bits / self.entropy if self.entropy > 0 else 0.0


def mutual_information(units: np.ndarray, others: np.ndarray) -> Information:
    """Return the mutual information of two columns of numbers from 0 on, `[n]` each.

    Few samples make independent things look related. The Miller-Madow correction takes off what is
    expected of that: half the number of occupied cells, less the rows and columns, over n.
    """
    counts = np.zeros((int(units.max(initial=-1)) + 1, int(others.max(initial=-1)) + 1))
    np.add.at(counts, (units, others), 1)
    total = counts.sum()
    if not total:
        return Information(0.0, 0.0)
    entropies = [_entropy(part) for part in (counts, counts.sum(axis=1), counts.sum(axis=0))]
    joint, of_units, of_others = entropies
    bits = max(0.0, of_units + of_others - joint)
    return Information(min(bits, of_others), of_others)


def quantiles(values: np.ndarray, number: int) -> np.ndarray:
    """Sort values into `number` equally full steps: return `[n]` int64 from 0 on."""
    edges = np.quantile(values, np.arange(1, number) / number)
    return np.searchsorted(np.unique(edges), values, side="right")


def _entropy(counts: np.ndarray) -> float:
    occupied = counts[counts > 0]
    shares = occupied / occupied.sum()
    plain = -(shares * np.log2(shares)).sum()
    return float(plain + (len(occupied) - 1) / (2 * occupied.sum() * np.log(2)))
