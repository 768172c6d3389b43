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

    def summary(self) -> dict[str, float]:
        """Return the figures for metadata.json.

        `perplexity` is the exponential of the entropy. `majority_share` is the accuracy of always
        guessing the most frequent unit. `mean_run_length` counts frames until the unit changes.
        """
        labels = int(self.counts.sum())
        shares = self.counts[self.counts > 0] / max(1, labels)
        return {
            "tracks": self.tracks,
            "labels": labels,
            "used_clusters": len(shares),
            "perplexity": round(float(np.exp(-(shares * np.log(shares)).sum())), 3),
            "majority_share": round(float(shares.max(initial=0)), 6),
            "mean_run_length": round(labels / max(1, self.runs), 3),
        }
