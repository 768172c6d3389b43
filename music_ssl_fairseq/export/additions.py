"""Put scores and the centroids of units beside an exported model."""

import csv
import io
import shutil
from pathlib import Path
from typing import Any

from music_ssl_fairseq.errors import InputError
from music_ssl_fairseq.runtime.files import write_json
from music_ssl_fairseq.runtime.hub import RESULTS, UNITS
from music_ssl_fairseq.runtime.texts import read_object, read_text
from music_ssl_fairseq.upstream.contents import Contents
from music_ssl_fairseq.upstream.model import Upstream

_NUMBERS = ("value", "low", "high", "learning_rate", "valid_score", "window_seconds")
_COUNTS = ("files", "groups", "windows")
_KEPT = ("features", "layer", "k", "checkpoint", "label_rate", "train_manifest")


def add_results(contents: Contents, folder: Path, report: Path) -> str:
    """Write results.json with this model's rows of a report, and return the card's section.

    `report` is the folder of the report, or its report.csv.

    Raises InputError if there is no such report, or no row of this model.
    """
    file = report / "report.csv" if report.is_dir() else report
    fingerprint = Upstream(contents, precision="fp32").fingerprint
    lines = csv.DictReader(io.StringIO(read_text(file, "give the folder of a report")))
    rows = [_typed(line) for line in lines if line.get("fingerprint") == fingerprint]
    if not rows:
        raise InputError(
            f"{file}: no row is of {contents.origin} (fingerprint {fingerprint[:16]}): probe it, "
            "and make the report again"
        )
    results = {"model": contents.name, "fingerprint": fingerprint, "results": rows}
    write_json(folder / RESULTS, results)
    return _RESULTS_SECTION.format(file=RESULTS, rows="\n".join(map(_row, rows)))


def _typed(line: dict[str, str]) -> dict[str, Any]:
    row: dict[str, Any] = {name: line[name] for name in ("task", "metric", "layer")}
    for names, kind in ((_NUMBERS, float), (_COUNTS, int)):
        row |= {name: kind(line[name]) for name in names if line.get(name)}
    return row


def _row(row: dict[str, Any]) -> str:
    value, low, high = (100 * row.get(name, float("nan")) for name in ("value", "low", "high"))
    seconds = row.get("window_seconds")
    window = f"{seconds:g} s" if seconds else "whole clips"
    figure = f"{value:.1f} [{low:.1f}, {high:.1f}]"
    return f"| {row['task']} | {row['metric']} | {figure} | {row['layer']} | {window} |"


_RESULTS_SECTION = """## Evaluation, and which layer to take

Probes on the frozen model, in percent with the 95 % interval; `{file}` has them for programs.
The layer is the one that the validation split chose (`all`: a learned weighted sum of the layers),
and so a guide to the layer to take for a similar task.

| task | metric | test | layer | windows |
|---|---|---|---|---|
{rows}
"""


def add_units(contents: Contents, folder: Path, labels: Path, name: str) -> str:
    """Copy the centroids of a label folder, and return the card's section.

    `name` is the model's on the hub or on disk, for the card's command.

    Raises InputError if it holds no finished labels.
    """
    file = labels / "centroids.npy"
    if not file.is_file():
        raise InputError(f"{labels}: no {file.name} in it: give a folder that label has written")
    metadata = read_object(labels / "metadata.json", "make the labels again")
    about = {key: metadata[key] for key in _KEPT if metadata.get(key) is not None}
    target = folder / UNITS
    target.mkdir()
    shutil.copyfile(file, target / file.name)
    write_json(target / "metadata.json", about)
    features = str(about.get("features"))
    deep = features == "deep"
    own = deep and about.get("checkpoint") == Upstream(contents, precision="fp32").fingerprint
    options = f" --layer {about.get('layer')} --checkpoint {name if own else 'FILE'}"
    return _UNITS_SECTION.format(
        k=about.get("k"),
        features=f"layer {about.get('layer')} of {'this model' if own else 'another model, FILE'}"
        if deep
        else features,
        options=f"--features {features}{options if deep else ''}",
        name=name,
    )


_UNITS_SECTION = """## Units

`units/centroids.npy` has the {k} centroids of the units, K-means on {features}. With
`music_ssl_fairseq` they label other music:

```
python -m music_ssl_fairseq label {options} \\
  --centroids {name} --labels labels
```
"""
