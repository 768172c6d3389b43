"""What the report of open_scores.sh shows: who beats whom, and whether the intervals lie apart.

python examples/probing/open_verdict.py report/report.csv
"""

import csv
import sys
from pathlib import Path

METRICS = {"key": "weighted_key_score", "instrument": "accuracy"}
COMPARISONS = (
    ("key", "chroma", "mfcc"),
    ("instrument", "mfcc", "chroma"),
    ("key", "trained", "random"),
    ("instrument", "trained", "random"),
)
"""Task, and the folders of the two runs, of which the first should be better."""


def verdict(rows: list[dict[str, str]]) -> list[str]:
    """A line a comparison, of the rows of `report.csv`, in percent."""
    figures = {}
    for row in rows:
        task, run = Path(row["folder"]).parts[-2:]
        if row["metric"] == METRICS[task]:
            figures[task, run] = [100 * float(row[name]) for name in ("value", "low", "high")]
    lines = []
    for task, better, worse in COMPARISONS:
        (value, low, high), (other, other_low, other_high) = (
            figures[task, better],
            figures[task, worse],
        )
        apart = low > other_high
        says = "yes, intervals apart" if apart else "yes" if value > other else "no"
        lines.append(
            f"{task}: {better} {value:.1f} [{low:.1f}, {high:.1f}] beats {worse} {other:.1f} "
            f"[{other_low:.1f}, {other_high:.1f}]: {says}"
        )
    return lines


if __name__ == "__main__":
    with open(sys.argv[1], newline="", encoding="utf-8") as file:
        print("\n".join(verdict(list(csv.DictReader(file)))))
