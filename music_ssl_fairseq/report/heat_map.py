"""Draw validation scores by layer and task, one panel per model."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from music_ssl_fairseq.report.gather import Probe
from music_ssl_fairseq.report.tables import tasks_of
from music_ssl_fairseq.runtime.files import atomic_path
from music_ssl_fairseq.runtime.optional import optional


def layer_curve(probe: Probe) -> dict[str, float]:
    """Return the best validation score of each layer, over its learning rates."""
    curve: dict[str, float] = {}
    for head in probe.heads:
        score = float("nan") if head["score"] is None else head["score"]
        curve[head["layer"]] = float(np.fmax(curve.get(head["layer"], float("nan")), score))
    return curve


def draw(probes: Sequence[Probe], file: Path) -> None:
    """Write a PNG.

    Each cell shows its score. Colours span the lowest to the highest score of a task and model,
    because scores of different tasks cannot be compared.

    Raises:
        InputError: if matplotlib is not installed.
    """
    optional("matplotlib", "plot").use("Agg")
    from matplotlib import pyplot

    models = list(dict.fromkeys(probe.model for probe in probes))
    heights = [len([p for p in probes if p.model == model]) for model in models]
    widest = max(len(layer_curve(probe)) for probe in probes)
    figure, axes = pyplot.subplots(
        len(models),
        1,
        figsize=(3.5 + 0.62 * widest, 0.3 + 0.8 * len(models) + 0.42 * sum(heights) + 0.4),
        height_ratios=heights,
        squeeze=False,
        layout="constrained",
    )
    figure.suptitle("validation score by layer, percent", size=10)
    for axis, model in zip(axes[:, 0], models, strict=True):
        of_model = {probe.task: probe for probe in probes if probe.model == model}
        _panel(axis, model, [of_model[t] for t in tasks_of(list(of_model.values()))])
    with atomic_path(file) as temporary:
        figure.savefig(temporary, dpi=150)
    pyplot.close(figure)


def _panel(axis, model: str, probes: Sequence[Probe]) -> None:
    curves = [layer_curve(probe) for probe in probes]
    layers = list(dict.fromkeys(layer for curve in curves for layer in curve))
    values = np.array([[curve.get(layer, np.nan) for layer in layers] for curve in curves])
    low, high = np.nanmin(values, axis=1), np.nanmax(values, axis=1)
    scaled = (values - low[:, None]) / np.maximum(high - low, 1e-9)[:, None]
    axis.imshow(scaled, aspect="auto", cmap="viridis", vmin=0, vmax=1)
    for (row, column), value in np.ndenumerate(values):
        if np.isfinite(value):
            colour = "black" if scaled[row, column] > 0.6 else "white"
            axis.text(
                column, row, f"{100 * value:.1f}", ha="center", va="center", color=colour, size=8
            )
    axis.set_xticks(range(len(layers)), layers)
    axis.set_yticks(range(len(probes)), [f"{p.task} ({p.about['metric']})" for p in probes])
    axis.set_title(model, size=9, loc="left")
