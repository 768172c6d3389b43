"""Read a study: rows of examples/study, in the order of its questions.

A row has a JSON file per seed, `NAME-sSEED.json`, and beside it the draws of its scores, `.npz`.
"""

import itertools
import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from music_ssl_fairseq.errors import InputError
from music_ssl_fairseq.runtime.texts import read_object


@dataclass(frozen=True)
class Run:
    """One row and seed: its JSON, and the draws per task, `[1 + resamples]`."""

    about: dict[str, Any]
    draws: Mapping[str, np.ndarray]

    @property
    def trained(self) -> bool:
        """Whether its encoder was judged."""
        return bool(self.about.get("family")) and not self.about.get("random")


Rows = dict[str, list[Run]]
"""Runs of each row's seeds; floors first, then the order of QUESTIONS."""


_ASKED = yaml.safe_load(files(__package__).joinpath("questions.yaml").read_text("utf-8"))

QUESTIONS = tuple(
    (question, row, other)
    for question, about in _ASKED.items()
    for other, *rows in about["pairs"]
    for row in rows
)
"""Question, row, and the row that it is compared with."""

CLAIMS = {question: about["paper"] for question, about in _ASKED.items() if "paper" in about}
"""Findings of the paper, by question: see questions.yaml."""


def read(folder: Path) -> Rows:
    """Read a study's results, seeds ascending.

    Raises InputError if there are none, a file is damaged, or rows were scored on other clips.
    """
    found: Rows = {}
    for file in sorted(folder.glob("*-s*.json")):
        about = read_object(file, "remove it, and run the study again")
        try:
            name, tasks = str(about["name"]), about["tasks"]
            draws: dict[str, np.ndarray] = {}
            if file.with_suffix(".npz").exists():
                with np.load(file.with_suffix(".npz"), allow_pickle=False) as saved:
                    draws = {task: saved[task].astype(np.float64) for task in tasks}
        except (KeyError, TypeError, ValueError, OSError) as error:
            raise InputError(f"{file}: damaged ({error}); remove it, and run again") from None
        found.setdefault(name, []).append(Run(about, draws))
    if not found:
        raise InputError(f"{folder}: no results of a study; run examples/study/study.sh first")
    _check_same_clips(folder, found)
    asked = [name for _, *names in QUESTIONS for name in names]
    places = {name: place for place, name in reversed(list(enumerate(asked)))}
    return dict(
        sorted(found.items(), key=lambda x: (x[1][0].trained, places.get(x[0], len(places)), x[0]))
    )


def _check_same_clips(folder: Path, rows: Rows) -> None:
    contents: dict[str, str] = {}
    for run in itertools.chain.from_iterable(rows.values()):
        for task, scored in run.about["tasks"].items():
            if run.draws and contents.setdefault(task, scored["content"]) != scored["content"]:
                raise InputError(
                    f"{folder}: {run.about['name']} was scored on other clips of {task} than other "
                    "rows; keep results of each data in a folder of their own"
                )


def flat(values: Mapping[str, Any], before: str = "") -> dict[str, str]:
    """Return nested values as JSON, by their dotted names."""
    found: dict[str, str] = {}
    for name, value in values.items():
        inside = isinstance(value, dict)
        found |= flat(value, f"{before}{name}.") if inside else {before + name: json.dumps(value)}
    return found


def unknown_judge(about: Mapping[str, Any]) -> bool:
    """Return whether a result does not say what data and probes its scores come from."""
    return not isinstance(about.get("made_of", {}).get("judge"), dict)


def other_judges(rows: Rows) -> dict[str, list[str]]:
    """Name, per `NAME-sSEED`, how its judging differs from that of most results."""
    judges = {
        f"{name}-s{run.about['seed']}": flat(run.about["made_of"]["judge"])
        for name, runs in rows.items()
        for run in runs
        if not unknown_judge(run.about)
    }
    found: dict[str, list[str]] = {}
    for key in dict.fromkeys(itertools.chain.from_iterable(judges.values())):
        usual = Counter(judge[key] for judge in judges.values() if key in judge).most_common(1)
        for name, judge in judges.items():
            if judge.get(key, usual[0][0]) != usual[0][0]:
                found.setdefault(name, []).append(key)
    return found


def tasks_of(rows: Rows) -> list[str]:
    """Return all tasks in the order of the row that has most."""
    most = max(
        itertools.chain.from_iterable(rows.values()), key=lambda run: len(run.about["tasks"])
    )
    return list(most.about["tasks"])


def value(runs: Sequence[Run], task: str) -> float:
    """Average a task's metric over the seeds that have it; NaN if none has."""
    found = [run.about["tasks"][task]["value"] for run in runs if task in run.about["tasks"]]
    known = [x for x in found if x is not None]
    return float(np.mean(known)) if known else math.nan
