"""Draw a study: heat map of rows and tasks, layer curves, training curves."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from music_ssl_fairseq.pages.figures import Panels, figure, new_figure
from music_ssl_fairseq.report.study import Rows, tasks_of, value
from music_ssl_fairseq.report.study_tables import mean_layer_curve
from music_ssl_fairseq.runtime.files import atomic_path

HEADLINE = (
    "random", "random-m2v", "random-harmonic", "hubert-music", "hubert-speech", "hubert-layer6",
    "hubert-harmonic", "hubert-chroma", "m2v-music", "m2v-speech",
)  # fmt: skip
"""Rows with colours of their own where there are more rows than colours can tell apart."""
_NUM_COLOURS = 10


def draw(rows: Rows, out: Path) -> dict[str, str]:
    """Write the figures that the rows have data for; return them as HTML by headings of a page."""
    drawn = {"scores": _heat_map, "layers": _layer_curves, "training": _training_curves}
    found = {}
    for name, of in drawn.items():
        shown = of(rows)
        if shown is not None:
            with atomic_path(out / f"{name}.png") as temporary:
                shown.savefig(temporary, dpi=120)
            found[f"Figure: {name}"] = figure(shown, f"{name} of all rows")
    return found


def _heat_map(rows: Rows):
    """Draw one colour scale per task, from its lowest to its highest row, with a colour bar."""
    tasks, names = tasks_of(rows), list(rows)
    drawn = new_figure(2.2 + 1.15 * len(tasks), 1.6 + 0.24 * len(names))
    axes = drawn.subplots(1, len(tasks), squeeze=False)[0]
    for axis, task in zip(axes, tasks, strict=True):
        values = 100 * np.array([[value(runs, task)] for runs in rows.values()])
        edges = np.arange(len(names) + 1) - 0.5
        shown = axis.pcolormesh([-0.5, 0.5], edges, values, cmap="viridis")
        axis.invert_yaxis()
        middle = np.nanmean([np.nanmin(values), np.nanmax(values)])
        for row, number in enumerate(values[:, 0]):
            if np.isfinite(number):
                # Not black itself, which pages replace by the text's colour.
                colour = "#111111" if number > middle else "white"
                axis.text(0, row, f"{number:.1f}", ha="center", va="center", color=colour, size=7)
        axis.set_xticks([0], [task], rotation=30, size=8)
        axis.set_yticks(range(len(names)), names if axis is axes[0] else [], size=8)
        drawn.colorbar(shown, ax=axis, location="bottom", shrink=0.9).ax.tick_params(labelsize=6)
    drawn.supxlabel("score on the test split, percent", size=8)
    return drawn


def _layer_curves(rows: Rows):
    """Draw the validation score of each layer, mean over seeds, a panel per task."""
    tasks, styles = tasks_of(rows), _styles(rows)
    panels = Panels(len(tasks))
    for axis, task in zip(panels, tasks, strict=False):
        for name, runs in rows.items():
            curve = mean_layer_curve(runs, task)
            if len(curve) > 1:
                axis.plot(list(curve), [100 * x for x in curve.values()], **styles[name])
        axis.set_title(task, size=9)
        axis.set_xlabel("layer", size=8)
        axis.set_ylabel("validation score, percent", size=8)
    if not any(axis.lines for axis in panels):
        return None
    panels.add_legend()
    return panels.figure


def _styles(rows: Rows) -> dict[str, dict[str, Any]]:
    """Return how to draw each row: all in colours, or the headline's before grey ones."""
    names = [name for name, runs in rows.items() if runs[0].about.get("family")]
    coloured = names if len(names) <= _NUM_COLOURS else [name for name in HEADLINE if name in names]
    styles = {name: {"color": "0.8", "linewidth": 0.7, "zorder": 1} for name in rows}
    for place, name in enumerate(coloured):
        styles[name] = {"color": f"C{place}", "linewidth": 1.4, "label": name}
    if others := [name for name in names if name not in coloured]:
        styles[others[0]]["label"] = "other rows"
    return styles


def _training_curves(rows: Rows):
    """Draw the loss of training and of held-out tracks against audio, a panel per family."""
    families = sorted(
        {run.about["family"] for runs in rows.values() for run in runs if run.about.get("train")}
    )
    if not families:
        return None
    from matplotlib import colormaps

    panels = Panels(len(families), columns=1, width=8.0)
    for axis, family in zip(panels, families, strict=True):
        axis.set_prop_cycle(color=colormaps["tab20"](range(20)))
        for name, runs in rows.items():
            about = runs[0].about
            if about.get("family") != family or not about.get("train"):
                continue
            each = about["audio_seconds"] / max(1, about["updates"]) / 1e6
            (line,) = axis.plot(*_points(about["train"], each), label=name, linewidth=1)
            axis.plot(*_points(about.get("valid", []), each), "o", color=line.get_color(), ms=3)
        axis.set_title(f"{family}: loss (dots: held out), first seed", size=9)
        axis.set_xlabel("million audio-seconds", size=8)
        unit = ", bits" if family == "music_hubert" else ""
        axis.set_ylabel(f"loss per masked frame{unit}", size=8)
        axis.legend(frameon=False, fontsize=6, loc="center left", bbox_to_anchor=(1, 0.5))
    return panels.figure


def _points(points: Sequence[dict[str, float]], each: float) -> tuple[list[float], list[float]]:
    known = [(p["update"] * each, p.get("loss_m", p.get("loss"))) for p in points]
    kept = [(x, y) for x, y in known if y is not None]
    return [x for x, _ in kept], [y for _, y in kept]
