"""Measure how units are used: their frequencies, and how fast they change."""

import numpy as np


class Usage:
    """Counts over all tracks of a split.

    Attributes:
        k: number of units.
        counts: `[k]` labels of each unit.
        runs: stretches of equal labels, none longer than a track.
        tracks: lines counted, empty ones included.
    """

    def __init__(self, k: int):
        self.k = k
        self.counts = np.zeros(k, np.int64)
        self.runs = self.tracks = 0

    def add(self, units: np.ndarray) -> None:
        """Count one track: `[frames]` integers in [0, k)."""
        self.counts += np.bincount(units, minlength=self.k)
        self.tracks += 1
        if len(units):
            self.runs += 1 + int(np.count_nonzero(np.diff(units)))

    @property
    def labels(self) -> int:
        """The number of labels counted."""
        return int(self.counts.sum())

    @property
    def used(self) -> int:
        """The number of units that occur."""
        return int(np.count_nonzero(self.counts))

    @property
    def perplexity(self) -> float:
        """The exponential of the entropy: so many equally frequent units would carry as much."""
        shares = self.counts[self.counts > 0] / max(1, self.labels)
        return float(np.exp(-(shares * np.log(shares)).sum()))

    @property
    def majority_share(self) -> float:
        """The share of the most frequent unit, which is the accuracy of always guessing it."""
        return float(self.counts.max() / max(1, self.labels))

    @property
    def mean_run_length(self) -> float:
        """The mean number of frames until the unit changes."""
        return self.labels / max(1, self.runs)

    def summary(self) -> dict[str, float]:
        """Return all of these for metadata.json."""
        return {
            "tracks": self.tracks,
            "labels": self.labels,
            "used_clusters": self.used,
            "perplexity": round(self.perplexity, 3),
            "majority_share": round(self.majority_share, 6),
            "mean_run_length": round(self.mean_run_length, 3),
        }
