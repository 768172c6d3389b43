"""Draw the pictures of a report."""

from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from music_ssl_fairseq.label.report_samples import ReportSamples
from music_ssl_fairseq.runtime.files import atomic_path

_BLUE, _VERMILION, _GREY = "#0072B2", "#D55E00", "#999999"
_REACH_SECONDS = 0.15  # before and after the middle of an example
_EXAMPLES_PER_UNIT = 10
_UNITS = 8


def save(figure: Figure, file: Path) -> None:
    """Write a figure atomically."""
    with atomic_path(file) as temporary:
        # Without the version of matplotlib: equal labels, equal files.
        figure.savefig(temporary, dpi=110, metadata={"Software": None})


def draw_inertia(metadata: dict[str, Any]) -> Figure:
    """Draw the mean squared distance of a frame to its centroid before each iteration."""
    figure = Figure(figsize=(7, 3.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    for axes, key, title in (
        (left, "coarse_inertia_curve", "on a part of the frames"),
        (right, "inertia_curve", "then on all of them"),
    ):
        curve = metadata[key]
        axes.plot(range(1, len(curve) + 1), curve, "o-", markersize=3, color=_BLUE)
        axes.set_title(title, fontsize=10)
        axes.set(xlabel="iteration", ylabel="inertia per frame")
        axes.grid(alpha=0.3)
    return figure


def draw_usage(counts: dict[str, np.ndarray]) -> Figure:
    """Draw the share of each unit, the most frequent first, for each split."""
    figure = Figure(figsize=(7, 3.2), layout="constrained")
    axes = figure.subplots()
    for (split, count), colour in zip(counts.items(), (_BLUE, _VERMILION), strict=False):
        shares = np.sort(count)[::-1] / max(1, count.sum())
        axes.semilogy(np.arange(1, len(shares) + 1), np.maximum(shares, 1e-9), color=colour)
        axes.lines[-1].set_label(split)
    axes.axhline(1 / len(shares), color=_GREY, linestyle=":", label="equal use")
    axes.set_ylim(bottom=max(1e-8, min(1 / max(1, c.sum()) for c in counts.values()) / 2))
    axes.set(xlabel="unit, by frequency", ylabel="share of all labels")
    axes.legend(frameon=False)
    axes.grid(alpha=0.3)
    return figure


def choose_units(samples: ReportSamples, k: int) -> list[int]:
    """Return a few units with enough examples, from the most frequent to rare ones."""
    counts = np.bincount(samples.units, minlength=k)
    order = np.argsort(-counts, kind="stable")
    known = order[counts[order] >= _EXAMPLES_PER_UNIT]
    places = np.linspace(0, len(known) - 1, min(_UNITS, len(known))).round().astype(int)
    return known[np.unique(places)].tolist()


def draw_units(samples: ReportSamples, units: list[int], label_rate: float) -> Figure:
    """Draw for each unit a strip of log-mel spectrograms around places where it occurs."""
    figure = Figure(figsize=(9, 0.5 + 1.15 * len(units)), layout="constrained")
    low, high = np.percentile(samples.log_mel.astype(np.float32), (5, 99.5))
    for axes, unit in zip(figure.subplots(len(units), 1, squeeze=False)[:, 0], units, strict=True):
        strip = _strip(samples, unit, max(1, round(_REACH_SECONDS * label_rate)))
        axes.imshow(
            strip.T, origin="lower", aspect="auto", vmin=low, vmax=high, interpolation="nearest"
        )
        axes.set_ylabel(f"unit {unit}", rotation=0, ha="right", va="center")
        axes.set(xticks=[], yticks=[])
    return figure


def _strip(samples: ReportSamples, unit: int, reach: int) -> np.ndarray:
    """Return `[frames, 80]`: examples side by side with gaps (NaN) between them."""
    gap = np.full((max(1, reach // 4), samples.log_mel.shape[1]), np.nan, np.float32)
    strip = []
    for middle in _middles(samples, unit):
        around = np.arange(middle - reach, middle + reach + 1).clip(0, len(samples.units) - 1)
        inside = samples.excerpt[around] == samples.excerpt[middle]
        example = samples.log_mel[around].astype(np.float32)
        example[~inside] = np.nan
        strip += [example, gap]
    return np.concatenate(strip[:-1])


def _middles(samples: ReportSamples, unit: int) -> list[int]:
    """Return the middles of the unit's longest runs, from as many excerpts as possible."""
    same = samples.units == unit
    begins = np.flatnonzero(same & ~np.r_[False, same[:-1]])
    ends = np.flatnonzero(same & ~np.r_[same[1:], False])
    middles = ((begins + ends) // 2)[np.argsort(begins - ends, kind="stable")]
    excerpts = samples.excerpt[middles]
    _, first_of_excerpt = np.unique(excerpts, return_index=True)
    others = np.setdiff1d(np.arange(len(middles)), first_of_excerpt)
    return middles[np.r_[np.sort(first_of_excerpt), others]][:_EXAMPLES_PER_UNIT].tolist()
