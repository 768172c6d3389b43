"""Who beats whom in the probes of open_scores.sh: differences with 95 % intervals.

Both of a pair are scored on the same files, so that their difference is surer than either figure.
What the bootstrap draws are chorales, in all their keys, and instruments, with all their notes: the
files of one are not independent. That makes these intervals wider than those of the report, over
files.

    python examples/probing/open_verdict.py probes
"""

import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np

from music_ssl_fairseq.probing.predictions import Predictions
from music_ssl_fairseq.report.bootstrap import statistic

COMPARISONS = (
    ("key", "chroma", "mfcc"),
    ("instrument", "mfcc", "chroma"),
    ("key", "trained", "random"),
    ("instrument", "trained", "random"),
)
"""Task, and the folders of two runs, of which the first should be better."""
RESAMPLES = 2000


def verdict(probes: Path) -> list[str]:
    """A line a comparison, in percent."""
    return [
        f"{task}: {better} - {worse} = {_difference(probes / task / better, probes / task / worse)}"
        for task, better, worse in COMPARISONS
    ]


def _difference(better: Path, worse: Path) -> str:
    about = json.loads((better / "test.json").read_text(encoding="utf-8"))
    classes = tuple(about["classes"])
    runs = [Predictions.load(run / "test_predictions.npz") for run in (better, worse)]
    # bwv269_+3.flac, 040_060.flac
    pieces = [Path(name).stem.rpartition("_")[0] for name in runs[0].names]
    names, piece = np.unique(pieces, return_inverse=True)
    share = np.full(len(names), 1 / len(names))
    draws = np.random.default_rng(0).multinomial(len(names), share, RESAMPLES)
    # The first row is the split as it is.
    counts = np.concatenate([np.ones((1, len(names)), draws.dtype), draws])
    values, others = (
        100 * statistic(about["metric"], replace(run, group_index=piece), counts, classes)
        for run in runs
    )
    low, high = np.quantile((values - others)[1:], [0.025, 0.975])
    says = "better" if low > 0 else "worse" if high < 0 else "not told apart"
    return (
        f"{values[0]:.1f} - {others[0]:.1f} = {values[0] - others[0]:.1f} "
        f"[{low:.1f}, {high:.1f}]: {says}"
    )


if __name__ == "__main__":
    print("\n".join(verdict(Path(sys.argv[1]))))
