"""Score all heads in training by the metric that decides on validation."""

import numpy as np

from music_ssl_fairseq.probing.features.windows import FRAME_RATE
from music_ssl_fairseq.probing.scoring.beats import are_peaks
from music_ssl_fairseq.probing.scoring.collector import Collector
from music_ssl_fairseq.probing.scoring.metrics import TOLERANCES, matched, score
from music_ssl_fairseq.probing.scoring.predictions import Predictions


def head_scores(collector: Collector, targets: np.ndarray) -> np.ndarray:
    """Compute `spec.metric` of each head's predictions, as `metrics.evaluate` reports it.

    Beats are decoded by `peaks`: `dbn` takes half a minute for all heads and a hundred files, which
    is too slow for every epoch.

    Args:
        targets: `[clips, ...]` of the split, in the units of the outputs.

    Returns:
        `[heads]` float64; NaN for a head with an output that is not finite.
    """
    split = collector.dataset.split
    if split.spec.kind == "beats":
        counts = np.ones(len(collector.dataset.clips), np.int64)
        outputs = _peak_counts(collector)
    else:
        sums, counts = collector.sums()
        outputs = sums / counts[:, None]
    names = [split.manifest.name(i) for i in range(len(counts))]
    heads = (Predictions(names, split.group_index, head, targets, counts) for head in outputs)
    return np.array([score(split.spec.metric, split.spec, head) for head in heads])


def _peak_counts(collector: Collector) -> np.ndarray:
    """Count beats found within ±70 ms, claimed and annotated: `[heads, clips, 3]`."""
    dataset = collector.dataset
    clips = []
    for clip in range(len(dataset.clips)):
        annotated, activations = dataset.beat_times(clip), collector.activations(clip)
        counted = []
        for peaks in are_peaks(activations):
            claimed = np.flatnonzero(peaks) / FRAME_RATE
            found = matched(annotated, claimed, TOLERANCES[0])
            counted.append((found, len(claimed), len(annotated)))
        counts = np.array(counted, np.float64)
        counts[~np.isfinite(activations).all(axis=1)] = np.nan
        clips.append(counts)
    return np.stack(clips, axis=1)
