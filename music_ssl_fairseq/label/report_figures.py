"""Draw the figures of a report."""

from typing import Any

import numpy as np

from music_ssl_fairseq.pages.figures import COLOURS, GREY, figure, new_figure


def draw_inertia(metadata: dict[str, Any]) -> str:
    """Draw the mean squared distance of a frame to its centroid before each iteration."""
    drawn = new_figure(8, 3)
    for axes, key, title in zip(
        drawn.subplots(1, 2),
        ("coarse_inertia_curve", "inertia_curve"),
        ("on a part of the frames", "then on all of them"),
        strict=True,
    ):
        curve = metadata[key]
        axes.plot(range(1, len(curve) + 1), curve, "o-", markersize=3, color=COLOURS[0])
        axes.set_title(title, fontsize=10)
        axes.set(xlabel="iteration", ylabel="inertia per frame\n(squared feature units)")
        axes.grid(alpha=0.3)
    return figure(
        drawn,
        "inertia of each iteration",
        "Mean squared distance of a frame to its centroid, before each iteration; "
        f"before the last one {metadata['train_inertia']:.6g}.",
    )


def draw_usage(counts: dict[str, np.ndarray]) -> str:
    """Draw the share of each unit, the most frequent first, for each split."""
    drawn = new_figure(8, 3)
    axes = drawn.subplots()
    for (split, count), colour in zip(counts.items(), COLOURS, strict=False):
        shares = np.sort(count)[::-1] / max(1, count.sum())
        used = shares[shares > 0]
        axes.semilogy(np.arange(1, len(used) + 1), 100 * used, color=colour, label=split)
    axes.axhline(100 / len(shares), color=GREY, linestyle=":", label="equal use")
    axes.set(xlabel="rank of the unit, most frequent first", ylabel="share of all labels, %")
    axes.legend(frameon=False)
    axes.grid(alpha=0.3)
    return figure(drawn, "share of each unit", "A line that ends early has units that never occur.")
