"""Read the log of a training that fairseq wrote, and draw its curves.

Needs `common.log_format: json`, which the configs of this repository set.
"""

import contextlib
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from music_ssl_fairseq.errors import InputError
from music_ssl_fairseq.pages.figures import COLOURS, figure, new_figure
from music_ssl_fairseq.runtime.user_command import corrected

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# hydra's `[date][train_inner][INFO] - {...}`, and `date | INFO | train_inner | {...}` elsewhere.
LOG = "hydra_train.log"
_LOG_LINE = re.compile(
    r"(?:\]\[|\| )(train_inner|train|valid\w*)(?:\]\[INFO\] - | \| )(\{.*\})\s*$"
)

_MAX_LINES_WITHIN = 4
_RUNS_PER_FIGURE = 3

Points = dict[int, dict[str, float]]
"""Logged numbers, by number of updates."""


@dataclass
class Curves:
    """One run's log. Where a run was resumed or begun again, the later lines count."""

    folder: Path
    train: Points
    valid: Points  # of the first of `dataset.valid_subset`, which chooses the best checkpoint

    @property
    def name(self) -> str:
        """The names of the folder above and of the folder, such as `music2vec/short`."""
        return "/".join(self.folder.resolve().parts[-2:])


def read_log(folder: Path) -> Curves:
    """Read `hydra_train.log` of a run's folder.

    Raises InputError if there is none, or it holds no training statistics in JSON.
    """
    file = folder / LOG
    if not file.is_file():
        raise InputError(
            f"{file}: no such log; name the run's folder, its hydra.run.dir", corrected(folder)
        )
    found: dict[str, Points] = {"train_inner": {}, "train": {}, "valid": {}}
    last = {"train_inner": 0, "train": 0}
    first_subset = ""
    for tag, stats in _logged(file):
        if tag.startswith("valid"):
            first_subset = first_subset or tag
            if tag != first_subset:
                continue
            tag = "valid"
        update = int(stats["num_updates"])
        if update < last.get(tag, 0):  # resumed there, or begun anew
            for points in found.values():
                for later in [known for known in points if known > update]:
                    del points[later]
        if tag in last:
            last[tag] = update
        found[tag][update] = stats
    # A run shorter than `log_interval` has the line at the end of the epoch only.
    train = found["train_inner"] or found["train"]
    if not train:
        raise InputError(
            f"{file}: holds no training statistics in JSON; train with common.log_format=json, "
            "for at least common.log_interval updates"
        )
    return Curves(folder, dict(sorted(train.items())), dict(sorted(found["valid"].items())))


def _logged(file: Path) -> Iterator[tuple[str, dict[str, float]]]:
    """Yield the tag and the numbers of each line that has statistics of an update."""
    with file.open(encoding="utf-8", errors="replace") as lines:
        for match in filter(None, map(_LOG_LINE.search, lines)):
            tag = match[1]
            stats = {}
            for key, value in json.loads(match[2]).items():
                # fairseq logs text, now and then a list, and `valid_` before names.
                with contextlib.suppress(TypeError, ValueError):
                    stats[key.removeprefix(f"{tag}_")] = float(value)
            if "num_updates" in stats:
                yield tag, stats


def series(points: Points, key: str) -> tuple[list[int], list[float]]:
    """Return updates and values of one key, where it was logged."""
    pairs = [(update, stats[key]) for update, stats in points.items() if key in stats]
    return [update for update, _ in pairs], [value for _, value in pairs]


def loss_key(curves: Curves) -> str:
    """Return the loss that runs can be compared by.

    musicHuBERT's `loss` holds a penalty on the features as well, `loss_m` does not.
    """
    return "loss_m" if series(curves.train, "loss_m")[1] else "loss"


def label_sets(curves: Curves) -> list[str]:
    """List the suffixes of the statistics of label sets: "" for one set, else "_0", "_1", ..."""
    names = (name for stats in curves.train.values() for name in stats)
    found = (n.removeprefix("accuracy_m") for n in names if n.startswith("accuracy_m"))
    return list(dict.fromkeys(found))


Line = tuple[str, str, str, str, int, str]
"""Axis, split (`train` or `valid`), logged number, label, index in COLOURS, style."""

_ACCURACY, _UNITS = "accuracy on masked frames", "units in use (perplexity)"
_SPREAD, _ERROR = "standard deviation over frames", "share of the squared error"

_LINES_OF_LABELS: list[Line] = [
    (_ACCURACY, "train", "accuracy_m", "train", 0, "-"),
    (_ACCURACY, "valid", "accuracy_m", "valid", 1, "--"),
    # Guessing the most frequent unit; its share differs between the splits.
    (_ACCURACY, "train", "majority_m", "most frequent unit (train)", 0, ":"),
    (_ACCURACY, "valid", "majority_m", "most frequent unit (valid)", 1, ":"),
    (_UNITS, "train", "perplexity_pred", "predictions", 0, "-"),
    (_UNITS, "valid", "perplexity_pred", "predictions (valid)", 1, "--"),
    (_UNITS, "train", "perplexity_target", "labels", 0, ":"),
    (_UNITS, "valid", "perplexity_target", "labels (valid)", 1, ":"),
]
_LINES_OF_TEACHER: list[Line] = [
    (_SPREAD, "train", "target_var", "targets", 0, "-"),  # 0 after a collapse
    (_SPREAD, "train", "pred_var", "predictions", 1, "--"),
    (_SPREAD, "valid", "target_var", "targets (valid)", 7, "-"),
    # Without dropout's noise: what the model itself tells apart.
    (_SPREAD, "valid", "pred_var", "predictions (valid)", 7, ":"),
    (_ERROR, "train", "pred_music", "pred_music: saved by knowing the crop", 0, "-"),
    (_ERROR, "valid", "pred_music", "pred_music (valid)", 1, "--"),
    (_ERROR, "train", "target_position", "target_position: due to position", 7, ":"),
    (_ERROR, "valid", "target_position", "target_position (valid)", 7, "-."),
]


def lines_of(curves: Curves) -> list[Line]:
    """Choose what to draw of a run: its loss, and of units, the teacher or both."""
    key = loss_key(curves)
    loss = "loss, bits per masked frame" if key == "loss_m" else "loss per masked frame"
    lines = [(loss, "train", key, "train", 0, "-"), (loss, "valid", key, "valid", 1, "--")]
    for number, suffix in enumerate(label_sets(curves)):
        of_set = f"label set {suffix[1:]}: " if suffix else ""
        lines += [
            (axis, split, key + suffix, of_set + label, colour + 2 * number, style)
            for axis, split, key, label, colour, style in _LINES_OF_LABELS
        ]
    return lines + (_LINES_OF_TEACHER if series(curves.train, "target_var")[1] else [])


def draw_line(axes: "Axes", curves: Curves, line: Line) -> None:
    """Draw a line against updates, if its numbers were logged."""
    name, split, key, label, colour, style = line
    axes.set_ylabel(name)
    updates, values = series(vars(curves)[split], key)
    if updates:
        marker = "o" if len(updates) < 25 else None
        (drawn,) = axes.plot(updates, values, style, label=label, marker=marker, markersize=3.5)
        drawn.set_color(COLOURS[colour % len(COLOURS)])


def draw(runs: Sequence[Curves]) -> "Figure":
    """Draw runs side by side: loss, what they have learned, and learning rate against updates.

    Runs that log the same, such as a sweep over rates, have the same axes.
    """
    columns = [lines_of(run) for run in runs]
    names = [list(dict.fromkeys(line[0] for line in lines)) for lines in columns]
    rows = max(map(len, names))
    figure = new_figure(1 + 4.5 * len(runs), 2 + 2.5 * rows)
    alike = len({(loss_key(run), *label_sets(run)) for run in runs}) == 1
    grid = figure.subplots(
        rows + 1,
        len(runs),
        sharex="col",
        sharey="row" if alike else False,
        squeeze=False,
        height_ratios=[*[3] * rows, 1.5],
    )
    for column, (curves, lines) in enumerate(zip(runs, columns, strict=True)):
        grid[0, column].set_title(curves.name, size=10)
        for line in lines:
            draw_line(grid[names[column].index(line[0]), column], curves, line)
        for place, axes in enumerate(grid[:rows, column]):
            if place >= len(names[column]):
                axes.set_axis_off()
            elif place:
                axes.set_ylim(bottom=0)
            if len(axes.lines) > _MAX_LINES_WITHIN:  # above the axes: it would hide lines
                outside = {"loc": "lower left", "bbox_to_anchor": (0, 1), "ncols": 2}
                axes.legend(frameon=False, fontsize=7, **outside)
            elif axes.lines:
                axes.legend(frameon=False, fontsize=8)
        rate = grid[rows, column]
        draw_line(rate, curves, ("learning rate", "train", "lr", "lr", 0, "-"))
        rate.set_xlabel("updates")
        rate.ticklabel_format(axis="y", style="sci", scilimits=(0, 0))
        for axes in grid[:, column]:
            axes.xaxis.get_major_locator().set_params(integer=True)
            axes.grid(alpha=0.3)
    return figure


def draw_runs_below(folders: Iterable[Path]) -> dict[str, str]:
    """Draw the pre-trainings below the folders for a page; empty if there are none.

    Logs without statistics are left out, and probes, whose heads are trained by the hundred.
    """
    found = []
    for file in (file for folder in folders for file in sorted(folder.rglob(LOG))):
        # No JSON, or nothing logged yet
        with contextlib.suppress(InputError):
            if not (file.parent / "probe.json").exists():
                found.append(read_log(file.parent))
    parts = [found[i : i + _RUNS_PER_FIGURE] for i in range(0, len(found), _RUNS_PER_FIGURE)]
    drawn = [
        figure(draw(part), f"training of {', '.join(str(run.folder) for run in part)}")
        for part in parts
    ]
    return {"Training": "\n".join(drawn)} if drawn else {}
