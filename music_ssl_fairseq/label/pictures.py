"""The pictures of a report."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from music_ssl_fairseq.label.evidence import Evidence
from music_ssl_fairseq.runtime.files import atomic_path

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_BLUE, _VERMILION, _GREY = "#0072B2", "#D55E00", "#999999"
_AROUND = 0.15  # seconds before and after the middle of an example
_EXAMPLES = 10  # of a unit
_UNITS = 8


def new_figure(width: float, height: float) -> "Figure":
    """One that needs no display."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def save(figure: "Figure", file: Path) -> None:
    with atomic_path(file) as temporary:
        # Without the version of matplotlib: equal labels, equal files.
        figure.savefig(temporary, dpi=110, metadata={"Software": None})


def draw_inertia(metadata: dict[str, Any]) -> "Figure":
    """Mean squared distance of a frame to its centroid, iteration by iteration."""
    figure = new_figure(7, 3.2)
    left, right = figure.subplots(1, 2)
    for axes, key, title in (
        (left, "coarse_inertia_curve", "on parts of the frames"),
        (right, "inertia_curve", "then on all of them"),
    ):
        curve = metadata[key]
        axes.plot(range(1, len(curve) + 1), curve, "o-", markersize=3, color=_BLUE)
        axes.set_title(title, fontsize=10)
        axes.set_xlabel("iteration")
        axes.set_ylabel("inertia a frame")
        axes.grid(alpha=0.3)
    return figure


def draw_usage(counts: dict[str, np.ndarray]) -> "Figure":
    """Share of each unit, the commonest first, for each split."""
    figure = new_figure(7, 3.2)
    axes = figure.subplots()
    for (split, count), colour in zip(counts.items(), (_BLUE, _VERMILION), strict=False):
        shares = np.sort(count)[::-1] / max(1, count.sum())
        axes.semilogy(np.arange(1, len(shares) + 1), np.maximum(shares, 1e-9), color=colour)
        axes.lines[-1].set_label(split)
    axes.axhline(1 / len(shares), color=_GREY, linestyle=":", label="equal use")
    axes.set_ylim(bottom=max(1e-8, min(1 / max(1, c.sum()) for c in counts.values()) / 2))
    axes.set_xlabel("unit, by frequency")
    axes.set_ylabel("share of all labels")
    axes.legend(frameon=False)
    axes.grid(alpha=0.3)
    return figure


def choose_units(evidence: Evidence, k: int) -> list[int]:
    """A few units from the commonest to rare ones, of which there are examples."""
    counts = np.bincount(evidence.units, minlength=k)
    order = np.argsort(-counts, kind="stable")
    known = order[counts[order] >= _EXAMPLES]
    places = np.linspace(0, len(known) - 1, min(_UNITS, len(known))).round().astype(int)
    return known[np.unique(places)].tolist()


def draw_units(evidence: Evidence, units: list[int], label_rate: float) -> "Figure":
    """For each unit a strip of log-mel spectrograms, each around a place where it is heard."""
    figure = new_figure(9, 0.5 + 1.15 * len(units))
    low, high = np.percentile(evidence.log_mel.astype(np.float32), (5, 99.5))
    for axes, unit in zip(figure.subplots(len(units), 1, squeeze=False)[:, 0], units, strict=True):
        strip = _strip(evidence, unit, max(1, round(_AROUND * label_rate)))
        axes.imshow(
            strip.T, origin="lower", aspect="auto", vmin=low, vmax=high, interpolation="nearest"
        )
        axes.set_ylabel(f"unit {unit}", rotation=0, ha="right", va="center")
        _bare(axes)
    return figure


def _bare(axes: "Axes") -> None:
    axes.set_xticks([])
    axes.set_yticks([])


def _strip(evidence: Evidence, unit: int, reach: int) -> np.ndarray:
    """`[frames, 80]`: examples side by side with gaps (NaN) between them."""
    gap = np.full((max(1, reach // 4), evidence.log_mel.shape[1]), np.nan, np.float32)
    pieces = []
    for middle in _middles(evidence, unit):
        around = np.arange(middle - reach, middle + reach + 1).clip(0, len(evidence.units) - 1)
        inside = evidence.excerpt[around] == evidence.excerpt[middle]
        piece = evidence.log_mel[around].astype(np.float32)
        piece[~inside] = np.nan
        pieces += [piece, gap]
    return np.concatenate(pieces[:-1])


def _middles(evidence: Evidence, unit: int) -> list[int]:
    """Middles of the unit's longest runs, of as many excerpts as possible."""
    same = evidence.units == unit
    begins = np.flatnonzero(same & ~np.r_[False, same[:-1]])
    ends = np.flatnonzero(same & ~np.r_[same[1:], False])
    middles = ((begins + ends) // 2)[np.argsort(begins - ends, kind="stable")]
    excerpts = evidence.excerpt[middles]
    _, first_of_excerpt = np.unique(excerpts, return_index=True)
    others = np.setdiff1d(np.arange(len(middles)), first_of_excerpt)
    return middles[np.r_[np.sort(first_of_excerpt), others]][:_EXAMPLES].tolist()
