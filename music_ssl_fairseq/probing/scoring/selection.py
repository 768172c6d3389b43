"""The metric that decides on validation, for all rows at once."""

import numpy as np

from music_ssl_fairseq.probing.features.windows import FRAME_RATE
from music_ssl_fairseq.probing.scoring.beats import are_peaks
from music_ssl_fairseq.probing.scoring.collector import Collector
from music_ssl_fairseq.probing.scoring.metrics import TOLERANCES, matched, score
from music_ssl_fairseq.probing.scoring.predictions import Predictions


def row_scores(collector: Collector, targets: np.ndarray) -> np.ndarray:
    """`task.metric` of each row's predictions, as `metrics.evaluate` reports it.

    For beats, those of `peaks`: the network of `dbn` takes half a minute for all rows of a hundred
    files, and would every epoch.

    Args:
        targets: `[clips, ...]` of the split, in the units of the outputs.

    Returns:
        `[rows]` float64; NaN for a row that put out anything that is not a finite number.
    """
    split = collector.dataset.split
    if split.task.kind == "beats":
        counts = np.ones(len(collector.dataset.clips), np.int64)
        outputs = _peak_counts(collector)
    else:
        sums, counts = collector.sums()
        outputs = sums / counts[:, None]
    names = [split.manifest.name(i) for i in range(len(counts))]
    rows = (Predictions(names, split.group_index, row, targets, counts) for row in outputs)
    return np.array([score(split.task.metric, split.task, row) for row in rows])


def _peak_counts(collector: Collector) -> np.ndarray:
    """`[rows, clips, 3]`: beats found within ±70 ms, claimed and annotated."""
    dataset = collector.dataset
    clips = []
    for clip in range(len(dataset.clips)):
        annotated, activations = dataset.beat_times(clip), collector.activations(clip)
        counted = []
        for row in are_peaks(activations):
            claimed = np.flatnonzero(row) / FRAME_RATE
            found = matched(annotated, claimed, TOLERANCES[0])
            counted.append((found, len(claimed), len(annotated)))
        rows = np.array(counted, np.float64)
        rows[~np.isfinite(activations).all(axis=1)] = np.nan
        clips.append(rows)
    return np.stack(clips, axis=1)
