"""Read the log of a training that fairseq wrote, and draw its curves.

Needs `common.log_format: json`, which the configs of this repository set.
"""

import contextlib
import json
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from music_ssl_fairseq.errors import InputError
from music_ssl_fairseq.pages.figures import BLUE, COLOURS, GREY, VERMILION, new_figure
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

Points = dict[int, dict[str, float]]
"""Logged numbers, by number of updates."""


@dataclass
class Curves:
    """One run's log. Of a run that was resumed or begun anew, what came after that update."""

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


def line(axes: "Axes", points: Points, key: str, label: str, colour: str, style: str = "-") -> None:
    """Draw one key against updates, if it was logged."""
    updates, values = series(points, key)
    if updates:
        marker = "o" if len(updates) < 25 else None
        axes.plot(updates, values, style, color=colour, label=label, marker=marker, markersize=3.5)


def loss_key(curves: Curves) -> str:
    """Return the loss that runs can be compared by.

    musicHuBERT's `loss` holds a penalty on the features as well, `loss_m` does not.
    """
    return "loss_m" if series(curves.train, "loss_m")[1] else "loss"


def draw_loss(axes: "Axes", curves: Curves) -> None:
    """Draw the loss of both splits."""
    key = loss_key(curves)
    axes.set_ylabel("loss, bits per masked frame" if key == "loss_m" else "loss per masked frame")
    line(axes, curves.train, key, "train", BLUE)
    line(axes, curves.valid, key, "valid", VERMILION, "--")


def label_sets(curves: Curves) -> list[tuple[str, str, str, str]]:
    """List musicHuBERT's label sets, and how each is drawn.

    Returns the suffix of its statistics ("" for one set, else "_0", "_1", ...), what stands before
    names in the legend, and the colours of train and valid.
    """
    names = (name for stats in curves.train.values() for name in stats)
    found = dict.fromkeys(n.removeprefix("accuracy_m") for n in names if n.startswith("accuracy_m"))
    return [
        (name, f"label set {name[1:]}: " if name else "", COLOURS[i % 8], COLOURS[(i + 1) % 8])
        for i, name in zip(range(0, 2 * len(found), 2), found, strict=True)
    ]


def draw_accuracy(axes: "Axes", curves: Curves) -> None:
    """Draw the accuracy on each label set, with its baseline."""
    axes.set_ylabel("accuracy on masked frames")
    for name, of, colour, other in label_sets(curves):
        line(axes, curves.train, f"accuracy_m{name}", f"{of}train", colour)
        line(axes, curves.valid, f"accuracy_m{name}", f"{of}valid", other, "--")
        # Guessing the most frequent unit; its share differs between the splits.
        majority = f"majority_m{name}"
        line(axes, curves.train, majority, f"{of}most frequent unit (train)", colour, ":")
        line(axes, curves.valid, majority, f"{of}most frequent unit (valid)", other, ":")
    axes.set_ylim(bottom=0)


def draw_units(axes: "Axes", curves: Curves) -> None:
    """Draw how many units of each label set the predictions name."""
    axes.set_ylabel("units in use (perplexity)")
    for name, of, colour, other in label_sets(curves):
        line(axes, curves.train, f"perplexity_pred{name}", f"{of}predictions", colour)
        line(axes, curves.valid, f"perplexity_pred{name}", f"{of}predictions (valid)", other, "--")
        line(axes, curves.train, f"perplexity_target{name}", f"{of}labels", colour, ":")
        line(axes, curves.valid, f"perplexity_target{name}", f"{of}labels (valid)", other, ":")
    axes.set_ylim(bottom=0)


def draw_spread(axes: "Axes", curves: Curves) -> None:
    """Draw the spread of music2vec's targets and predictions, which is 0 after a collapse."""
    axes.set_ylabel("standard deviation over frames")
    line(axes, curves.train, "target_var", "targets", BLUE)
    line(axes, curves.train, "pred_var", "predictions", VERMILION, "--")
    line(axes, curves.valid, "target_var", "targets (valid)", GREY)
    # Without dropout's noise: what the model itself tells apart.
    line(axes, curves.valid, "pred_var", "predictions (valid)", GREY, ":")
    axes.set_ylim(bottom=0)


def draw_music(axes: "Axes", curves: Curves) -> None:
    """Draw how much music2vec's predictions and targets know of the music."""
    axes.set_ylabel("share of the squared error")
    line(axes, curves.train, "pred_music", "pred_music: saved by knowing the crop", BLUE)
    line(axes, curves.valid, "pred_music", "pred_music (valid)", VERMILION, "--")
    line(axes, curves.train, "target_position", "target_position: due to position", GREY, ":")
    line(axes, curves.valid, "target_position", "target_position (valid)", GREY, "-.")
    axes.set_ylim(bottom=0)


def draw_learning_rate(axes: "Axes", curves: Curves) -> None:
    axes.set_ylabel("learning rate")
    axes.set_xlabel("updates")
    line(axes, curves.train, "lr", "lr", BLUE)
    axes.ticklabel_format(axis="y", style="sci", scilimits=(0, 0))


def panels_of(curves: Curves) -> list[Callable[["Axes", Curves], None]]:
    """Choose what to draw of a run: it may predict units, the teacher, or both."""
    of_units = [draw_accuracy, draw_units] if label_sets(curves) else []
    of_teacher = [draw_spread, draw_music] if series(curves.train, "target_var")[1] else []
    return [draw_loss, *of_units, *of_teacher]


def draw(runs: Sequence[Curves]) -> "Figure":
    """Draw runs side by side: loss, what they have learned, and learning rate against updates.

    Runs that log the same, such as a sweep over rates, have the same axes.
    """
    columns = [panels_of(run) for run in runs]
    rows = max(map(len, columns))
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
    for column, (curves, panels) in enumerate(zip(runs, columns, strict=True)):
        grid[0, column].set_title(curves.name, size=10)
        for axes in grid[len(panels) : rows, column]:
            axes.set_axis_off()
        for axes, panel in zip(grid[:, column], panels, strict=False):
            panel(axes, curves)
            if len(axes.lines) > _MAX_LINES_WITHIN:  # above the axes: it would hide lines
                place = {"loc": "lower left", "bbox_to_anchor": (0, 1), "ncols": 2}
                axes.legend(frameon=False, fontsize=7, **place)
            elif axes.lines:
                axes.legend(frameon=False, fontsize=8)
        draw_learning_rate(grid[rows, column], curves)
        for axes in grid[:, column]:
            axes.xaxis.get_major_locator().set_params(integer=True)
            axes.grid(alpha=0.3)
    return figure


def find_runs(folders: Iterable[Path]) -> list[Curves]:
    """Read the logs of pre-training below the folders, in the order of paths.

    Those without statistics are left out, and probes, whose heads are trained by the hundred.
    """
    found = []
    for folder in folders:
        for file in sorted(folder.rglob(LOG)):
            if (file.parent / "probe.json").exists():
                continue
            try:
                found.append(read_log(file.parent))
            except InputError:  # no JSON, or nothing logged yet
                continue
    return found
