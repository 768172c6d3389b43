"""Published figures, for comparison, each with its paper and tables.

The papers have their own probes, windows and, in part, data. Figures of the same weights differ
between papers by more than a point, so models of different sources are not one ranking.
"""

from dataclasses import dataclass

_TAGS = ("macro_roc_auc", "macro_average_precision")
COLUMNS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("mtt", _TAGS),
    ("giantsteps-key", ("weighted_key_score",)),
    ("gtzan-genre", ("accuracy",)),
    ("gtzan-beat", ("f_measure",)),
    ("emomusic", ("r2_valence", "r2_arousal")),
    ("nsynth-instrument", ("accuracy",)),
    ("nsynth-pitch", ("accuracy",)),
    ("vocalset-technique", ("accuracy",)),
    ("vocalset-singer", ("accuracy",)),
    ("mtg-instrument", _TAGS),
    ("mtg-moodtheme", _TAGS),
    ("mtg-genre", _TAGS),
    ("mtg-top50", _TAGS),
)
"""Tasks in order, with the metrics of the figures."""

MARBLE = "MARBLE, arXiv 2306.10548, tables of results"
MUQ = "MuQ, arXiv 2501.01108, tables 1 and 2"


@dataclass(frozen=True)
class PublishedModel:
    """A published model.

    Attributes:
        model: name that its authors use.
        source: paper and table.
        percent: in the order of COLUMNS; None where the source has no figure.
    """

    model: str
    source: str
    percent: tuple[float | None, ...]

    def figures(self) -> dict[tuple[str, str], float]:
        """Return the source's figures: (task, metric) -> fraction."""
        places = [(task, metric) for task, metrics in COLUMNS for metric in metrics]
        known = zip(places, self.percent, strict=True)
        return {place: value / 100 for place, value in known if value is not None}


PUBLISHED = (
    PublishedModel(
        "music2vec (MAP)",
        MARBLE,
        (
            *(90.0, 36.2, 50.6, 74.1, 68.2, 52.1, 71.0, 69.3, 93.1, 71.1, 81.4),
            *(76.1, 19.2, 76.7, 14.3, 87.1, 18.8, 83.0, 29.2),
        ),
    ),
    PublishedModel(
        "MERT-v1-95M",
        MARBLE,
        (
            *(91.0, 39.3, 63.5, 74.8, 88.3, 55.5, 76.3, 70.7, 92.6, 74.2, 83.7),
            *(77.5, 19.4, 76.4, 13.4, 87.1, 18.8, 83.0, 29.0),
        ),
    ),
    PublishedModel(
        "Jukebox-5B",
        MARBLE,
        (
            *(91.4, 40.6, 63.8, 77.9, None, 57.0, 73.0, 70.4, 91.6, 76.7, 82.6),
            *(78.5, 22.0, 77.6, 15.3, 88.0, 20.5, 83.7, 30.6),
        ),
    ),
    PublishedModel(
        "MuQ",
        MUQ,
        (91.4, 40.3, 63.5, 85.5, None, 60.9, 75.4, 79.2, 92.3, 82.4, 95.8, *(None,) * 8),
    ),
)
