"""The metric that decides on validation, for all rows at once."""

import numpy as np

from music_ssl_fairseq.probing.beats import are_peaks
from music_ssl_fairseq.probing.collector import Collector
from music_ssl_fairseq.probing.metrics import TOLERANCES, key_scores
from music_ssl_fairseq.probing.predictions import grouped
from music_ssl_fairseq.probing.ranking import macro
from music_ssl_fairseq.probing.windows import FRAME_RATE

_APART = 10_000.0  # seconds between files on a common time line


def row_scores(collector: Collector, targets: np.ndarray) -> np.ndarray:
    """`task.metric` of each row's predictions.

    For beats, those of `peaks`: the network of `dbn` takes half a minute for all rows of a hundred
    files, and would every epoch.

    Args:
        targets: `[clips, ...]` of the split, in the units of the outputs.

    Returns:
        `[rows]` float64.
    """
    task = collector.dataset.split.task
    if task.kind == "beats":
        return _f_measures(collector)
    sums, counts = collector.sums()
    outputs = sums / counts[:, None]
    if task.kind == "multi-label":
        return np.array([macro(task.metric, row, targets)[0] for row in outputs])
    if task.kind == "regression":
        residual = np.square(outputs - targets).sum(axis=1)
        spread = np.square(targets - targets.mean(axis=0)).sum(axis=0)
        return (1 - residual / np.maximum(spread, 1e-12)).mean(axis=-1)
    if task.metric == "group_accuracy":
        index = collector.dataset.split.group_index
        outputs = grouped(sums, counts, index)
        targets = targets[np.unique(index, return_index=True)[1]]
    claimed = outputs.argmax(-1)
    if task.metric == "weighted_key_score":
        return key_scores(task.classes)[targets, claimed].mean(axis=-1)
    return (claimed == targets).mean(axis=-1)


def _f_measures(collector: Collector) -> np.ndarray:
    """F-measure at ±70 ms pooled over all files, `[rows]`."""
    dataset = collector.dataset
    reference: list[np.ndarray] = []
    claimed: list[list[np.ndarray]] = []
    for clip in range(len(dataset.clips)):
        reference.append(dataset.beat_times(clip) + clip * _APART)
        found = are_peaks(collector.activations(clip))
        claimed.append([np.flatnonzero(row) / FRAME_RATE + clip * _APART for row in found])
    annotated = np.concatenate(reference)
    scores = []
    for parts in zip(*claimed, strict=True):
        beats = np.concatenate(parts)
        # Peaks are further apart than twice the tolerance: none is near two beats.
        places = np.searchsorted(beats, [annotated - TOLERANCES[0], annotated + TOLERANCES[0]])
        hits = (places[1] > places[0]).sum()
        scores.append(2 * hits / max(1, len(beats) + len(annotated)))
    return np.array(scores)
