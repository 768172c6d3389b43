"""Write probes as a page: table, intervals, layers, and curves of trainings."""

import math
from collections.abc import Sequence
from pathlib import Path

from music_ssl_fairseq.pages.figures import figure
from music_ssl_fairseq.pages.page import Cell, Page, paragraph, table
from music_ssl_fairseq.report import floors, probe_figures, tables, training
from music_ssl_fairseq.report.gather import Probe, layer_curve

_RUNS_PER_FIGURE = 3


def write(
    probes: Sequence[Probe],
    known: Sequence[Sequence[str]],
    runs: Sequence[training.Curves],
    split: str,
    file: Path,
    figures: bool,
) -> str:
    """Write the page; return its name and size. `figures` need matplotlib.

    `known` are `floors.rows` of the probes, `runs` the trainings whose curves are shown.
    """
    tasks, models = tables.tasks_of(probes), tables.models_of(probes)
    page = Page(
        "Probes",
        f"models: {len(models)}, tasks: {len(tasks)}; percent on the {split} split, of the head "
        "that the validation split chose.",
    )
    notes = dict.fromkeys(tables.remarks(probes, split))
    page.add("Scores", _scores(probes), *(paragraph(note, "note") for note in notes))
    if figures:
        page.add("Intervals", probe_figures.draw_intervals(probes, split))
        if any(len(layer_curve(probe)) > 1 for probe in probes):
            page.add("Layers", probe_figures.draw_layer_curves(probes))
            page.add("Heat map", probe_figures.draw_heat_map(probes))
        if runs:
            page.add("Training", *_curves(runs))
    hint = floors.hint(probes)
    if known or hint:
        parts = [table(list(floors.HEADER), known)] if known else []
        page.add("Is the pipeline right?", *parts, paragraph(hint) if hint else "")
    published = tables.published(tasks)
    if published:
        note = paragraph(tables.PUBLISHED_NOTE)
        page.add("Published", note, table(published[0], published[1:]))
    return page.write(file)


def _curves(runs: Sequence[training.Curves]) -> list[str]:
    """Draw some runs per figure."""
    parts = [runs[i : i + _RUNS_PER_FIGURE] for i in range(0, len(runs), _RUNS_PER_FIGURE)]
    return [
        figure(training.draw(part), f"training of {', '.join(str(run.folder) for run in part)}")
        for part in parts
    ]


def _scores(probes: Sequence[Probe]) -> str:
    """Format a row per model; two columns per figure, its value with interval, and the layer."""
    columns = [
        (task, metric)
        for task in tables.tasks_of(probes)
        for metric in next(probe for probe in probes if probe.task == task).figures
    ]
    known = {(probe.model, probe.task): probe for probe in probes}
    best = {
        (task, metric): max(
            (p.figures[metric].value for p in probes if p.task == task),
            key=lambda value: value if math.isfinite(value) else -math.inf,
        )
        for task, metric in columns
    }
    rows = []
    for model in tables.models_of(probes):
        row: list[str | Cell] = [model]
        for task, metric in columns:
            probe = known.get((model, task))
            if probe is None:
                row.append(Cell("", None))
                continue
            shown = probe.figures[metric]
            value = 100 * shown.value if math.isfinite(shown.value) else None
            text, _, interval = tables.percent(shown).partition(" [")
            is_best = shown.value == best[task, metric]
            row.append(Cell(text, value, is_best, _note(probe, interval)))
        rows.append(row)
    return table(
        ["model", *(f"{task}: {tables.spoken(metric)}" for task, metric in columns)],
        rows,
        "Below each score: its 95 % interval, of a bootstrap over files, and the chosen layer (0: "
        'projected extractor output; "all": learned weighted sum). Bold: the best of the column. '
        "Names of models with other windows than 5 s end in the window.",
    )


def _note(probe: Probe, interval: str) -> str:
    return " ".join(filter(None, (f"[{interval}" if interval else "", tables.layer_of(probe))))
