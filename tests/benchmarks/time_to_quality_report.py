"""What `time_to_quality` reads in logs and prints, and the folder of a record."""

import json
import re
import shutil
import statistics
import sys
from datetime import datetime
from pathlib import Path
from typing import Any

from music_ssl_fairseq.runtime.files import atomic_path

_PAGE = """# Record: {name}

What changed since the record before, and why it is faster: (to be written)

```
{command}
```

{device}, torch {torch}, {date}. Corpus:

{corpus}

{table}

`figures.json` has each validation: updates, seconds, measure. `SEED.log` and `SEED.yaml`: per run.
"""


def entries(log: str, began: float) -> list[dict[str, Any]]:
    """Read a log: `kind` (train_inner or valid), `seconds` since `began`, and its numbers."""
    found = []
    for line in log.splitlines():
        match = re.search(r"^\[(.*?)\]\[(train_inner|valid)\]\[INFO\] - (\{.*)", line)
        if match:
            numbers = {key: float(value) for key, value in json.loads(match[3]).items()}
            seconds = round(seconds_of(match[1]) - began, 3)
            found.append({"kind": match[2], "seconds": seconds, **numbers})
    return found


def seconds_of(stamp: str) -> float:
    """Read a log line's date and time, whose milliseconds fairseq's `wall` leaves out."""
    return datetime.strptime(stamp, "%Y-%m-%d %H:%M:%S,%f").timestamp()


def held_at(curve: list[list[float]], level: float, more_is_better: bool) -> float | None:
    """Return the seconds of the second of two validations in a row that reach a level.

    Args:
        curve: per validation: updates, seconds, measure.
    """
    good = [(value >= level) if more_is_better else (value <= level) for _, _, value in curve]
    for (_, seconds, _), before, now in zip(curve[1:], good, good[1:], strict=False):
        if before and now:
            return seconds
    return None


def mean_and_interval(values: list[float]) -> str:
    """Format the mean, and its 95 % interval by Student's t, of a few values."""
    from scipy.stats import t

    mean = statistics.fmean(values)
    if len(values) < 2:
        return f"{mean:.1f}"
    half = t.ppf(0.975, len(values) - 1) * statistics.stdev(values) / len(values) ** 0.5
    return f"{mean:.1f} [{mean - half:.1f}, {mean + half:.1f}]"


def table(figures: dict[str, Any]) -> str:
    """Return a Markdown table: seconds to each level, of each program."""
    measure = "pred_music" if figures["more_is_better"] else "bits"
    lines = [
        f"| | {measure} | seconds, mean [95 %] | per seed | cold | tenth update after, s |",
        "|---|---|---|---|---|---|",
    ]
    for who, runs in figures["runs"].items():
        starts = [run["start"] for run in runs.values() if run["start"] is not None]
        start = statistics.fmean(starts) if starts else float("nan")
        for level in figures["levels"]:
            times = [
                held_at(run["curve"], level, figures["more_is_better"]) for run in runs.values()
            ]
            each = ", ".join("not reached" if time is None else f"{time:.1f}" for time in times)
            reached = [time for time in times if time is not None]
            mean = mean_and_interval(reached) if len(reached) == len(times) else "-"
            cold = "-"
            if who == "ours" and figures["cold_start"] is not None and mean != "-":
                cold = f"{statistics.fmean(reached) + figures['cold_start'] - start:.1f}"
            lines.append(f"| {who} | {level:g} | {mean} | {each} | {cold} | {start:.1f} |")
    return "\n".join(lines)


def write(figures: dict[str, Any], runs: Path, folder: Path) -> None:
    """Write a record's folder: figures.json, each run's log and configuration, and README.md."""
    folder.mkdir(parents=True, exist_ok=True)
    for who, seeds in figures["runs"].items():
        for seed in seeds:
            name = seed if who == "ours" else f"{who}-{seed}"
            run = runs / f"{who}-{seed}"
            if run.exists():  # not of an earlier command, whose files are in the record
                shutil.copyfile(run / "hydra_train.log", folder / f"{name}.log")
                shutil.copyfile(run / ".hydra" / "config.yaml", folder / f"{name}.yaml")
    page = _PAGE.format(
        name=folder.name,
        command=" ".join(["python -m tests.benchmarks.time_to_quality", *sys.argv[1:]]),
        corpus="\n".join(f"- {name}: {text}" for name, text in figures["corpus"].items()),
        table=table(figures),
        **{key: figures[key] for key in ("device", "torch", "date")},
    )
    (folder / "README.md").write_text(page)
    with atomic_path(folder / "figures.json") as temporary:  # last: what it names is there
        temporary.write_text(json.dumps(figures, indent=1) + "\n")
