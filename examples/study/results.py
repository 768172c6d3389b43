"""A finished row as one small JSON file, its log, and the draws that paired differences need."""

import gzip
import importlib
import json
import sys
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from music_ssl_fairseq.data.run_identity import differences
from music_ssl_fairseq.errors import InputError
from music_ssl_fairseq.report.gather import find, layer_curve
from music_ssl_fairseq.report.study import flat, unknown_judge
from music_ssl_fairseq.report.training_curves import read_log
from music_ssl_fairseq.runtime.files import atomic_path
from music_ssl_fairseq.runtime.texts import read_object

EXAMPLES = Path(__file__).parents[1]
RESAMPLES, SEED, POINTS = 1000, 0, 40
_KEPT = ("loss", "accuracy", "majority", "perplexity", "pred_", "target_")
PACKAGES = ("music_ssl_fairseq", "torch", "torchaudio", "numpy", "ve-fairseq", "fairseq-fixed")


def is_done(results: Path, row_id: str, made_of: dict[str, Any]) -> bool:
    """Return whether the row's JSON is there.

    The sound of the judge's clips may differ: see `has_sound_of`.

    Raises:
        InputError: if it is damaged, or of other settings or data.
    """
    file = results / f"{row_id}.json"
    if not file.exists():
        return False
    about = read_object(file, "remove it, and run again")
    then = {**about.get("made_of", {}), "row": {key: about.get(key) for key in made_of["row"]}}
    if changed := differences(_without_sound(made_of), _without_sound(then)):
        raise InputError(
            f"{file}: of other settings or data: {changed}; give another --results, or remove it"
        )
    return True


def _without_sound(made_of: Mapping[str, Any]) -> dict[str, str]:
    return {key: value for key, value in flat(made_of).items() if not key.endswith(".sound")}


def has_sound_of(judge: Mapping[str, Any], results: Path, row_id: str) -> bool:
    """Return whether a finished row was judged on clips that sound as those of `judge` do.

    On another kind of processor, the same music is rendered a little otherwise.
    """
    about = read_object(results / f"{row_id}.json")
    return not unknown_judge(about) and flat(about["made_of"]["judge"]) == flat(judge)


def rates(results: Path, device: str) -> dict[str, float]:
    """Return audio-seconds per second of a GPU, by family, of rows on this kind of device."""
    found: dict[str, list[float]] = {}
    for file in sorted(results.glob("*-s*.json")):
        about = read_object(file)
        if about.get("gpu_seconds") and about.get("device") == device:
            rate = about["audio_seconds"] / about["gpu_seconds"]
            found.setdefault(about["family"], []).append(rate)
    return {family: float(np.median(values)) for family, values in found.items()}


def write(
    results: Path, row_id: str, found: dict[str, Any], probes: Path, run: Path | None
) -> None:
    """Write ROW.npz, ROW.log.gz and last ROW.json, which says that the row is done.

    Args:
        found: what the runner knows of the row.
        probes: the judge's folder of this encoder.
        run: the training's folder, in WORK/runs; None for floors. The log's paths begin there.
    """
    results.mkdir(parents=True, exist_ok=True)
    tasks, draws = scores(probes)
    found = {**found, "tasks": tasks, "versions": versions()}
    if run is not None:
        found["train"], found["valid"] = curves(run)
        log = (run / "hydra_train.log").read_bytes()
        log = log.replace(bytes(run.resolve().parents[1]), b"WORK").replace(
            bytes(EXAMPLES.parent), b"."
        )
        with atomic_path(results / f"{row_id}.log.gz") as temporary:
            temporary.write_bytes(gzip.compress(log, mtime=0))
    with atomic_path(results / f"{row_id}.npz") as temporary:
        np.savez_compressed(temporary, **draws)
    with atomic_path(results / f"{row_id}.json") as temporary:
        temporary.write_text(json.dumps(found, indent=1, allow_nan=False) + "\n", encoding="utf-8")


def scores(probes: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return per task the judge's figure with its interval, layer and layer curve; and the draws.

    Draws are the metric of the split and of each resample, `[1 + RESAMPLES]` float32. Rows that
    were scored on the same clips have the same resamples, so draws may be subtracted.
    """
    tasks = open_tasks()
    metrics = {task.name: task.metric for task in tasks.TASKS}
    found: dict[str, Any] = {}
    draws: dict[str, Any] = {}
    for probe in find([probes], "test", RESAMPLES, SEED, tasks.unit):
        metric = metrics[probe.task]
        figure, about = probe.figures[metric], probe.about
        found[probe.task] = {
            "metric": metric,
            "content": probe.content,
            **{name: _number(value) for name, value in vars(figure).items()},
            **{name: about[name] for name in ("layer", "learning_rate", "fingerprint")},
            "valid": _number(about["valid_score"]),
            "layers": {layer: _number(value) for layer, value in layer_curve(probe).items()},
        }
        draws[probe.task] = probe.draws[metric].astype(np.float32)
    return found, draws


def open_tasks() -> Any:
    """Import the judge's module of tasks."""
    sys.path.insert(0, str(EXAMPLES / "open_tasks"))
    try:
        return importlib.import_module("tasks")
    finally:
        sys.path.remove(str(EXAMPLES / "open_tasks"))


def _number(value: float | None) -> float | None:
    return round(float(value), 5) if value is not None and np.isfinite(value) else None


def curves(run: Path) -> tuple[list[dict[str, float]], list[dict[str, float]]]:
    """Read points of training, at most POINTS evenly chosen, and all validations."""
    log = read_log(run)
    updates = list(log.train)
    chosen = sorted({updates[round(i)] for i in np.linspace(0, len(updates) - 1, POINTS)})
    return (
        [{"update": update, **_kept(log.train[update])} for update in chosen],
        [{"update": update, **_kept(point)} for update, point in log.valid.items()],
    )


def _kept(point: dict[str, float]) -> dict[str, float]:
    return {k: v for k, v in point.items() if k.startswith(_KEPT) and np.isfinite(v)}


def versions() -> dict[str, str]:
    """Return versions of the packages that matter, of those that are installed."""
    found = {"python": sys.version.split()[0]}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found
