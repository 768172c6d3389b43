"""Describe each unit for the report: how it is used, what it sounds like, what is near it."""

from typing import Any

import numpy as np
from scipy.stats import entropy

from music_ssl_fairseq.data.manifest import Manifest
from music_ssl_fairseq.label_report.samples import CLIPS, ReportSamples, runs
from music_ssl_fairseq.pages.flat import flat_map, nearest

PITCH_CLASSES = ("C", "C#", "D", "D#", "E", "F", "F#", "G", "G#", "A", "A#", "B")
LOUDNESS_EDGES = np.arange(-72.0, 1.0, 6.0)
"""Decibels; what is quieter or louder counts in the first or the last step."""
_NEIGHBOURS = 5
_BANDS = 20  # of the mean spectrum
_CONTEXT_SECONDS = 0.3  # played before and after a unit


def describe_units(
    samples: ReportSamples,
    counts: dict[str, np.ndarray],
    centroids: np.ndarray,
    manifest: Manifest,
    label_rate: float,
    seed: int,
) -> dict[str, Any]:
    """Return what the page's script shows: a dict per unit, a name per sound, names of axes.

    Args:
        counts: split -> `[k]` labels of each unit.
        centroids: `[k, dimension]`.
        manifest: of the tracks that samples are from.
    """
    k = len(centroids)
    order = np.argsort(samples.units, kind="stable")
    edges = np.searchsorted(samples.units[order], np.arange(k + 1))
    places = _clips(samples, k, label_rate)
    distances, others = nearest(centroids, _NEIGHBOURS)
    plane = flat_map(centroids, seed).round(4).tolist()
    shares = {split: count / max(1, count.sum()) for split, count in counts.items()}
    units = []
    for unit in range(k):
        here = order[edges[unit] : edges[unit + 1]]
        units.append(
            {
                "share": {split: _rounded(100 * share[unit]) for split, share in shares.items()},
                "x": plane[unit][0],
                "y": plane[unit][1],
                "near": others[unit].tolist(),
                "distance": [_rounded(value) for value in distances[unit]],
                **_profile(samples, here),
                **places[unit],
            }
        )
    return {
        "units": units,
        "tracks": [manifest.name(track) for track in samples.tracks],
        "pitchClasses": PITCH_CLASSES,
        "loudness": LOUDNESS_EDGES.tolist(),
    }


def _rounded(value: float) -> float:
    return float(f"{value:.4g}")


def _profile(samples: ReportSamples, here: np.ndarray) -> dict[str, Any]:
    """Return percentages of pitch classes and of steps of loudness, and the mean spectrum."""
    if not len(here):
        return {"pitch": [], "loud": [], "spectrum": [], "db": None}
    classes = samples.pitch_class[here]
    classes = classes[classes >= 0]
    pitch = np.bincount(classes, minlength=12) / max(1, len(classes))
    steps = np.digitize(samples.loudness[here], LOUDNESS_EDGES[1:-1])
    loud = np.bincount(steps, minlength=len(LOUDNESS_EDGES) - 1) / len(here)
    mean = samples.log_mel[here].astype(np.float32).mean(axis=0)
    bands = mean.reshape(_BANDS, -1).mean(axis=1)
    return {
        "pitch": (100 * pitch).round().astype(int).tolist(),
        "pitched": round(100 * len(classes) / len(here)),
        "loud": (100 * loud).round().astype(int).tolist(),
        "db": round(float(np.median(samples.loudness[here])), 1),
        "spectrum": (bands - bands.min()).round(1).tolist(),
    }


def _clips(samples: ReportSamples, k: int, label_rate: float) -> list[dict[str, Any]]:
    """Return each unit's clips, and the mean length of all its runs in milliseconds.

    A clip is a run with its context: the longest of each excerpt first, then the next longest.
    """
    begins, ends = runs(samples.units, samples.excerpt)
    unit_of = samples.units[begins]
    lengths = ends - begins + 1
    order = np.lexsort((-lengths, unit_of))
    edges = np.searchsorted(unit_of[order], np.arange(k + 1))
    found = []
    for unit in range(k):
        own = order[edges[unit] : edges[unit + 1]]
        _, longest = np.unique(samples.excerpt[begins[own]], return_index=True)
        others = np.setdiff1d(np.arange(len(own)), longest)
        chosen = own[np.r_[np.sort(longest), others][:CLIPS]]
        clips = []  # [excerpt, seconds of the clip's start and end, of the run's start and end]
        for begin, end in zip(begins[chosen], ends[chosen], strict=True):
            start, stop = samples.seconds[begin], samples.seconds[end] + 1 / label_rate
            context = max(0.0, start - _CONTEXT_SECONDS), stop + _CONTEXT_SECONDS
            times = [round(float(time), 3) for time in (*context, start, stop)]
            clips.append([int(samples.excerpt[begin]), *times])
        mean = round(1000 * float(lengths[own].mean()) / label_rate, 1) if len(own) else None
        found.append({"clips": clips, "ms": mean})
    return found


def mutual_information(units: np.ndarray, others: np.ndarray) -> tuple[float, float]:
    """Return the mutual information of two columns of numbers from 0 on, `[n]` each, in bits.

    And the entropy of the second column, in bits, which it cannot exceed.

    Few samples make independent things look related. The Miller-Madow correction takes off what is
    expected of that: half the number of occupied cells, less the rows and columns, over n.
    """
    if not len(units):
        return 0.0, 0.0
    pairs = np.stack([units, others], axis=1)
    joint, of_units, of_others = map(_entropy, (pairs, units, others))
    bits = max(0.0, of_units + of_others - joint)
    return min(bits, of_others), of_others


def quantiles(values: np.ndarray, number: int) -> np.ndarray:
    """Sort values into `number` equally full steps: return `[n]` int64 from 0 on."""
    edges = np.quantile(values, np.arange(1, number) / number)
    return np.searchsorted(np.unique(edges), values, side="right")


def _entropy(values: np.ndarray) -> float:
    counts = np.unique(values, axis=0, return_counts=True)[1]
    return float(entropy(counts, base=2) + (len(counts) - 1) / (2 * len(values) * np.log(2)))
