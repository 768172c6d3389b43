"""Format probes as Markdown, of which pages are made, as CSV, and for a terminal."""

import csv
import io
import math
from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import chain

from music_ssl_fairseq.report import floors
from music_ssl_fairseq.report.floors import PUBLISHED, TASKS
from music_ssl_fairseq.report.gather import Figure, Probe

_PUBLISHED_NOTE = (
    "Not measured here: other probes, other windows, and in part other data. Each row names its "
    "source; rows of different sources are not one ranking."
)

CSV_FIELDS = (
    "source", "model", "task", "metric", "value", "low", "high", "layer", "learning_rate",
    "valid_score", "window_seconds", "files", "groups", "windows", "fingerprint", "folder",
)  # fmt: skip


def tasks_of(probes: Sequence[Probe]) -> list[str]:
    """List the tasks in the usual order, others after them."""
    found = dict.fromkeys(probe.task for probe in probes)
    return [task for task in TASKS if task in found] + [t for t in found if t not in TASKS]


def models_of(probes: Sequence[Probe]) -> list[str]:
    """List the models in the order of the probes."""
    return list(dict.fromkeys(probe.model for probe in probes))


def spoken(metric: str) -> str:
    """Return a metric's name for people."""
    return metric.replace("_", " ").replace("roc auc", "ROC-AUC")


def layer_of(probe: Probe) -> str:
    """Return the chosen layer for people; a front end has none."""
    layer = str(probe.about["layer"])
    return f"layer {layer}" if layer.isdigit() or layer == "all" else ""


def aligned(probes: Sequence[Probe]) -> str:
    """Format all scores in columns, for a terminal."""
    rows = [("task", "upstream", "metric", "score in percent [95 % interval]", "layer")]
    for probe in probes:
        for metric, figure in probe.figures.items():
            layer = layer_of(probe).removeprefix("layer ") or "-"
            rows.append((probe.task, probe.model, metric, percent(figure), layer))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = (zip(row, widths, strict=True) for row in rows)
    return "\n".join("  ".join(c.ljust(n) for c, n in line).rstrip() for line in lines)


def markdown(probes: Sequence[Probe], split: str, resamples: int) -> str:
    """Format scores and notes, then front ends (`floors`) and published figures under `##`."""
    models, tasks = models_of(probes), tasks_of(probes)
    metrics = {probe.task: probe.figures for probe in probes}
    columns = [(task, metric) for task in tasks for metric in metrics[task]]
    scores = [_scores(probes, models, task, metric) for task, metric in columns]
    blocks = [
        "# Probes",
        f"Percent on the {split} split, of the head that the validation split chose; in brackets "
        f"the 95 % interval of a bootstrap over files ({resamples} resamples); then the layer (0: "
        'projected extractor output; "all": learned weighted sum). Bold: the best of the column. '
        "Names of models with other windows than 5 s end in the window.",
        table(["model", *_headings(columns)], list(zip(models, *scores, strict=True))),
        "\n".join(f"- {note}" for note in dict.fromkeys(remarks(probes, split))),
    ]
    known, hint = floors.rows(probes, split), floors.hint(probes)
    if known or hint:
        blocks += ["## Is the pipeline right?", table(floors.HEADER, known) if known else "", hint]
    shared = [column for column in columns if column in PUBLISHED[0].figures]
    if shared:
        others = [
            [
                *(model.model, model.source),
                *(f"{100 * model.figures[c]:.1f}" if c in model.figures else "" for c in shared),
            ]
            for model in PUBLISHED
        ]
        published = table(["model", "source", *_headings(shared)], others)
        blocks += ["## Published", _PUBLISHED_NOTE, published]
    return document(blocks)


def _headings(columns: Sequence[tuple[str, str]]) -> list[str]:
    return [f"{task}: {spoken(metric)}" for task, metric in columns]


def _scores(probes: Sequence[Probe], models: Sequence[str], task: str, metric: str) -> list[str]:
    """Format a column: score with interval and layer, the best in bold; "" for no probe."""
    of_model = {probe.model: probe for probe in probes if probe.task == task}
    figures = [probe.figures[metric] for probe in of_model.values()]
    best = max((figure.value for figure in figures if math.isfinite(figure.value)), default=None)
    found = []
    for probe in map(of_model.get, models):
        if probe is None:
            found.append("")
            continue
        score, space, interval = percent(probe.figures[metric]).partition(" [")
        score = f"**{score}**" if probe.figures[metric].value == best else score
        found.append(", ".join(filter(None, (score + space + interval, layer_of(probe)))))
    return found


def remarks(probes: Sequence[Probe], split: str) -> list[str]:
    """Name classes that were not scored, scores that are outdated, and audio that differs."""
    absent = [
        f"{probe.task}: not scored, because absent from {split}: {', '.join(names)}."
        for probe in probes
        if (names := probe.about["absent_classes"])
    ]
    outdated = [
        f"{probe.task}: {probe.model} was trained further after its score on {split}, of which its "
        f"curve of layers knows: score {probe.folder} again."
        for probe in probes
        if probe.outdated
    ]
    return [*absent, *outdated, *_other_audio(probes)]


def _other_audio(probes: Sequence[Probe]) -> list[str]:
    """Name probes whose audio files differ from most probes' of their task."""
    found = []
    for task in tasks_of(probes):
        of_task = [probe for probe in probes if probe.task == task]
        for split in dict.fromkeys(chain.from_iterable(probe.audio for probe in of_task)):
            known = [(probe.model, probe.audio[split]) for probe in of_task if split in probe.audio]
            usual = Counter(digest for _, digest in known).most_common(1)[0][0]
            if others := [model for model, digest in known if digest != usual]:
                found.append(
                    f"{task}: the {split} files of {', '.join(others)} are not those of the other "
                    "models: other recordings, or copies in another format."
                )
    return found


def percent(figure: Figure) -> str:
    """Format a figure and its interval in percent."""
    if not math.isfinite(figure.value):
        return "not defined"
    return f"{100 * figure.value:.1f} [{100 * figure.low:.1f}, {100 * figure.high:.1f}]"


def document(blocks: Iterable[str]) -> str:
    """Join headings, paragraphs, lists and tables of Markdown; empty ones are left out."""
    return "\n\n".join(filter(None, blocks)) + "\n"


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Format a Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(c.replace('|', '/') for c in line)} |" for line in lines)


def comma_separated(probes: Sequence[Probe]) -> str:
    """Format one CSV line per model, task and metric, with the published ones."""
    text = io.StringIO()
    lines = csv.DictWriter(text, CSV_FIELDS, lineterminator="\n")
    lines.writeheader()
    for probe in probes:
        about = probe.about
        shared = {name: about[name] for name in CSV_FIELDS if name in about}
        for metric, figure in probe.figures.items():
            own = ("measured", probe.model, probe.task, metric)
            known = {k: v for k, v in vars(figure).items() if math.isfinite(v)}
            row = {**shared, **dict(zip(CSV_FIELDS, own, strict=False)), **known}
            lines.writerow({**row, "folder": str(probe.folder)})
    tasks = tasks_of(probes)
    for model in PUBLISHED:
        for (task, metric), value in model.figures.items():
            if task in tasks:
                cells = (model.source, model.model, task, metric, round(value, 4))
                lines.writerow(dict(zip(CSV_FIELDS, cells, strict=False)))
    return text.getvalue()
