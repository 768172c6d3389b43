"""Published figures, for comparison, each with its paper and tables.

The papers have their own probes, windows and, in part, data. Figures of the same weights differ
between papers by more than a point, so models of different sources are not one ranking.
"""

import csv
from dataclasses import dataclass
from importlib.resources import files


@dataclass(frozen=True)
class PublishedModel:
    """A published model."""

    model: str  # name that its authors use
    source: str  # paper and table
    percent: dict[str, str]  # task and metric -> figure in percent, or "" where the source has none

    def figures(self) -> dict[tuple[str, str], float]:
        """Return the source's figures: (task, metric) -> fraction."""
        known = ((tuple(name.split()), value) for name, value in self.percent.items() if value)
        return {(task, metric): float(value) / 100 for (task, metric), value in known}


def _read() -> tuple[PublishedModel, ...]:
    text = files(__package__).joinpath("published.csv").read_text("utf-8")
    rows = csv.DictReader(text.splitlines())
    return tuple(PublishedModel(row.pop("model"), row.pop("source"), row) for row in rows)


PUBLISHED = _read()

COLUMNS: dict[str, tuple[str, ...]] = {}
"""Task -> metrics of the figures, in order."""
for _task, _metric in map(str.split, PUBLISHED[0].percent):
    COLUMNS[_task] = (*COLUMNS.get(_task, ()), _metric)
