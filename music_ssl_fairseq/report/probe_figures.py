"""Draw probes: scores with intervals, validation scores by layer as curves and as a heat map."""

from collections.abc import Sequence

import numpy as np

from music_ssl_fairseq.pages.figures import COLOURS, GREY, Panels, figure, new_figure
from music_ssl_fairseq.report.gather import Probe, layer_curve
from music_ssl_fairseq.report.tables import models_of, spoken, tasks_of

_ONLY = "only"
"""Column of a probe of one layer, such as a front end."""
_MAX_POINTS = 40.0  # of the colour scale; cells further below have its last colour


def draw(probes: Sequence[Probe], split: str) -> dict[str, str]:
    """Draw what the probes have data for, as HTML by headings of a page."""
    found = {"Intervals": _intervals(probes, split)}
    if any(len(layer_curve(probe)) > 1 for probe in probes):
        found |= {"Layers": _layer_curves(probes), "Heat map": _heat_map(probes)}
    return found


def _of_task(probes: Sequence[Probe], task: str) -> list[Probe]:
    of_model = {probe.model: probe for probe in probes if probe.task == task}
    return [of_model[model] for model in models_of(probes) if model in of_model]


def _intervals(probes: Sequence[Probe], split: str) -> str:
    """Draw each model's first metric with its 95 % interval, a panel per task."""
    tasks, models = tasks_of(probes), models_of(probes)
    panels = Panels(len(tasks), height=0.9 + 0.22 * len(models), share_y=True)
    for axes, task in zip(panels, tasks, strict=False):
        for probe in _of_task(probes, task):
            name, shown = next(iter(probe.figures.items()))
            place = models.index(probe.model)
            colour = COLOURS[place % len(COLOURS)]
            axes.plot([100 * shown.low, 100 * shown.high], [place, place], color=colour)
            axes.plot(100 * shown.value, place, "o", color=colour, markersize=5)
            axes.set_xlabel(f"{spoken(name)}, %", size=8)
        axes.set_title(task, size=9)
        axes.set_yticks(range(len(models)), models, size=8)
        axes.set_ylim(len(models) - 0.5, -0.5)
        axes.grid(alpha=0.3)
    return figure(
        panels.figure,
        f"scores on {split} with 95 % intervals",
        "Dots: scores. Lines: 95 % intervals of a bootstrap over the songs of the split.",
    )


def _layer_curves(probes: Sequence[Probe]) -> str:
    """Draw the validation score of each layer, a panel per task; one-layer probes as lines."""
    tasks, models = tasks_of(probes), models_of(probes)
    panels = Panels(len(tasks))
    named = {layer for probe in probes for layer in layer_curve(probe)}
    last = max((int(layer) for layer in named if layer.isdigit()), default=0)
    ticks = [*range(0, last + 1, 1 + last // 7)]
    for axes, task in zip(panels, tasks, strict=False):
        for probe in _of_task(probes, task):
            colour = COLOURS[models.index(probe.model) % len(COLOURS)]
            curve = {layer: 100 * score for layer, score in layer_curve(probe).items()}
            if len(curve) == 1:
                level = next(iter(curve.values()))
                axes.axhline(level, color=colour, linestyle="--", label=probe.model)
                continue
            numbers = [layer for layer in curve if layer.isdigit()]
            places = [int(layer) for layer in numbers]
            scores = [curve[layer] for layer in numbers]
            axes.plot(places, scores, "o-", markersize=3, color=colour, label=probe.model)
            if "all" in curve:
                axes.plot(last + 2, curve["all"], "D", color=colour)
        axes.set_title(task, size=9)
        axes.set_xlabel("layer (all: learned sum)", size=8)
        metric = _of_task(probes, task)[0].about["metric"]
        axes.set_ylabel(f"validation {spoken(metric)}, %", size=8)
        if "all" in named:
            axes.set_xticks([*ticks, last + 2], [*map(str, ticks), "all"])
        else:
            axes.set_xticks(ticks)
        axes.grid(alpha=0.3)
    panels.add_legend()
    return figure(
        panels.figure,
        "validation score by layer",
        "Best head of each layer on the validation split; layer 0 is the projected extractor "
        "output. Dashed: baselines of one layer, such as front ends.",
    )


def _heat_map(probes: Sequence[Probe]) -> str:
    """Draw the validation score of each layer as text, coloured by its distance to the best.

    One colour scale holds for all tasks and models: points below the best layer of any model on
    the task. Scores themselves share no scale, as chance and metric differ.
    """
    tasks = tasks_of(probes)
    curves = [layer_curve(probe) for probe in probes]
    named = dict.fromkeys(layer for curve in curves if len(curve) > 1 for layer in curve)
    columns = [*named, *([_ONLY] if any(len(curve) == 1 for curve in curves) else [])]
    heights = [len(_of_task(probes, task)) for task in tasks]
    tall = 0.9 + 0.32 * len(tasks) + 0.24 * sum(heights)
    drawn = new_figure(3.0 + 0.56 * len(columns), tall)
    axes = drawn.subplots(len(tasks), 1, squeeze=False, height_ratios=heights)[:, 0]
    for axis, task in zip(axes, tasks, strict=True):
        shown = _panel(axis, _of_task(probes, task), columns)
    axes[-1].set_xticks(np.arange(len(columns)) + 0.5, columns, size=8)
    axes[-1].set_xlabel("layer (0: projected extractor output; all: learned sum)", size=9)
    bar = drawn.colorbar(shown, ax=list(axes), shrink=min(1.0, 3 / tall), pad=0.01, extend="max")
    bar.set_label("points below best", size=8)
    return figure(
        drawn,
        "heat map of validation scores by layer",
        "Validation score, percent. Colour: points below the best layer of any model on the task.",
    )


def _panel(axis, probes: Sequence[Probe], columns: Sequence[str]):
    values = np.full((len(probes), len(columns)), np.nan)
    for row, probe in enumerate(probes):
        curve = layer_curve(probe)
        for layer, score in curve.items():
            values[row, columns.index(layer if len(curve) > 1 else _ONLY)] = 100 * score
    best = np.nanmax(values) if np.isfinite(values).any() else 0.0
    shown = axis.pcolormesh(best - values, cmap="viridis_r", vmin=0, vmax=_MAX_POINTS)
    for (row, column), value in np.ndenumerate(values):
        if np.isfinite(value):
            # Not black itself, which pages replace by the text's colour.
            colour = "white" if best - value > 0.4 * _MAX_POINTS else "#111111"
            place = {"ha": "center", "va": "center", "color": colour, "size": 7.5}
            axis.text(column + 0.5, row + 0.5, f"{value:.1f}", **place)
    axis.set_xticks([])
    axis.set_yticks(np.arange(len(probes)) + 0.5, [probe.model for probe in probes], size=8)
    axis.invert_yaxis()
    axis.set_facecolor(f"{GREY}33")
    metric = spoken(probes[0].about["metric"])
    axis.set_title(f"{probes[0].task}: {metric}", size=9, loc="left")
    return shown
