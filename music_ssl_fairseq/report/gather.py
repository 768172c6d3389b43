"""Find scored probes, and read their results."""

import hashlib
import shlex
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from music_ssl_fairseq.errors import InputError
from music_ssl_fairseq.probing.scoring.predictions import Predictions
from music_ssl_fairseq.probing.spec import KINDS
from music_ssl_fairseq.report.bootstrap import interval, resampled
from music_ssl_fairseq.runtime.texts import read_object
from music_ssl_fairseq.runtime.user_command import corrected, made_tasks

_OF_THE_HEAD = ("fingerprint", "layer", "learning_rate", "best_epoch")
"""Entries equal in `SPLIT.json` and `probe.json`, unless heads were trained after the score."""


@dataclass(frozen=True)
class Figure:
    """A metric with its interval; NaN where it is not defined."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Probe:
    """One scored probe."""

    folder: Path  # the run's folder
    model: str  # the upstream's name; with the window's length where that is not 5 s
    task: str  # name of the task
    about: dict[str, Any]  # contents of `SPLIT.json`
    heads: list[dict[str, Any]]  # the grid, from `probe.json`
    figures: dict[str, Figure]  # metric -> figure, in order
    content: str = ""  # digest of the question: kind, classes or targets, files and their labels
    outdated: bool = False  # whether heads were trained after the score, and the grid is of those
    audio: dict[str, str] = field(default_factory=dict)  # split -> digest of its files, if noted
    # Metric -> `[1 + resamples]`, its value and the resamples'
    draws: dict[str, np.ndarray] = field(default_factory=dict)


def layer_curve(probe: Probe) -> dict[str, float]:
    """Return the best validation score of each layer, over its learning rates."""
    curve: dict[str, float] = {}
    for head in probe.heads:
        score = float("nan") if head["score"] is None else head["score"]
        curve[head["layer"]] = float(np.fmax(curve.get(head["layer"], float("nan")), score))
    return curve


Unit = Callable[[str], str]
"""Function from a clip's name to that of its piece, if clips of a piece are not independent."""


def find(
    folders: Iterable[Path], split: str, resamples: int, seed: int, unit: Unit | None = None
) -> list[Probe]:
    """Find all probes below the folders that were scored on `split`, by task and model.

    With `unit`, the bootstrap draws units, not the task's groups, whose metrics are left out.

    Raises InputError if there is none, or a folder does not exist.
    """
    found: list[Probe] = []
    unscored: list[Path] = []
    for folder in folders:
        if not folder.is_dir():
            raise InputError(f"{folder}: no such folder", corrected(folder))
        for file in sorted(folder.rglob("probe.json")):
            if (file.parent / f"{split}.json").exists():
                found.append(_probe(file.parent, split, resamples, seed, unit))
            else:
                unscored.append(file.parent)
    if not found:
        hint = f" ({len(unscored)} have no {split}.json)" if unscored else ""
        raise InputError(
            f"{', '.join(map(str, folders))}: no scored probe below{hint}; score one with "
            "fairseq-validate, or with this command",
            _probe_command(folders),
        )
    found = _tasks_apart(found)
    return list(_told_apart(sorted(found, key=lambda probe: (probe.task, probe.model))))


def _probe_command(folders: Iterable[Path]) -> str:
    """Return the command that scores the run in these folders on the tasks in probing/."""
    runs = [str(folder) for folder in folders if (folder / "checkpoints").is_dir()]
    tasks = made_tasks()
    words = ["--upstream", *runs, "--task", *tasks] if runs and tasks else ["--help"]
    return f"python -m music_ssl_fairseq probe {shlex.join(words)}"


def predictions_of(folder: Path, split: str, unit: Unit | None = None) -> Predictions:
    """Read a probe's predictions of a split, grouped by `unit` if it is given."""
    predictions = Predictions.load(folder / f"{split}_predictions.npz")
    if unit is None:
        return predictions
    _, index = np.unique([unit(name) for name in predictions.names], return_inverse=True)
    return replace(predictions, group_index=index.astype(np.int64))


def _probe(folder: Path, split: str, resamples: int, seed: int, unit: Unit | None) -> Probe:
    again = "train or validate again"
    about = read_object(folder / f"{split}.json", again)
    table = read_object(folder / "probe.json", again)
    predictions = predictions_of(folder, split, unit)
    try:
        seconds = about["window_seconds"]
        window = "" if seconds == 5 else f", {seconds:g} s" if seconds else ", whole clips"
        names = tuple(about["classes"]), tuple(about["targets"])
        figures, draws = {}, {}
        for name in _shown(about, unit is None):
            value = about["metrics"][name]
            value = float("nan") if value is None else float(value)
            draws[name] = resampled(name, predictions, *names, resamples, seed)
            _compare(folder, split, name, value, float(draws[name][0]))
            figures[name] = Figure(value, *interval(name, draws[name]))
        model, content = about["upstream"] + window, _content(about, predictions)
        outdated = any(about[name] != table.get(name, about[name]) for name in _OF_THE_HEAD)
        audio = {**table.get("audio", {}), **about.get("audio", {})}
        known = about["task"], about, table["rows"], figures, content, outdated, audio, draws
        return Probe(folder, model, *known)
    except InputError:
        raise
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        raise InputError(
            f"{folder}: {split}.json, probe.json or the predictions are damaged ({error!r}); "
            f"{again}"
        ) from None


def _compare(folder: Path, split: str, metric: str, value: float, found: float) -> None:
    """Refuse a score that is not that of the predictions beside it: a scoring was interrupted."""
    if not np.isclose(found, value, rtol=1e-6, atol=1e-9, equal_nan=True):
        raise InputError(
            f"{folder}: {split}.json says {metric} {value:g}, but {split}_predictions.npz has "
            f"{found:g}: they are of different scorings; score again"
        )


def _content(about: dict[str, Any], predictions: Predictions) -> str:
    parts = [about["kind"], about["classes"], about["targets"], predictions.names]
    digest = hashlib.sha256(repr(parts).encode("utf-8", "surrogateescape"))
    if not KINDS[about["kind"]].has_beats:  # whose targets are scores
        digest.update(predictions.targets.tobytes())
    return digest.hexdigest()


def _shown(about: dict[str, Any], grouped: bool) -> Sequence[str]:
    kind = KINDS[about["kind"]]
    if kind.has_numbers:
        # Valence comes first in published tables.
        return [f"r2_{name}" for name in sorted(about["targets"], reverse=True)]
    grouped = grouped and about["groups"] != about["files"]
    return [name for name in kind.shown if grouped or not name.startswith("group_")]


def _tasks_apart(probes: list[Probe]) -> list[Probe]:
    """Add to a task's name what differs, where one name stands for several tasks."""
    described: dict[tuple[str, str], str] = {}
    for name in {probe.task for probe in probes}:
        tasks = {probe.content: probe.about for probe in probes if probe.task == name}
        for details in ("{kind}", "{kind}, {files} files"):
            words = [details.format(**about) for about in tasks.values()]
            if len(set(words)) == len(words):
                break
        else:
            words = [f"{word}, {i}" for i, word in enumerate(words, 1)]
        if len(tasks) > 1:
            described |= {
                (name, content): f"{name} ({word})"
                for content, word in zip(tasks, words, strict=True)
            }
    return [
        replace(probe, task=described.get((probe.task, probe.content), probe.task))
        for probe in probes
    ]


def _told_apart(probes: list[Probe]) -> Iterator[Probe]:
    """Add the folder to a model's name where a task has several probes of one name."""
    names = [(probe.task, probe.model) for probe in probes]
    twice = {model for task, model in names if names.count((task, model)) > 1}
    for probe in probes:
        suffix = f" ({probe.folder.name})" if probe.model in twice else ""
        yield replace(probe, model=probe.model + suffix)
