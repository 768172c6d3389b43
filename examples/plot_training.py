"""Draw how pre-training runs went, from the logs that fairseq writes.

Needs `common.log_format: json`, which the configs of this repository set. One column a run: its
loss; masked accuracy against always guessing the commonest unit (musicHuBERT) or the spread of
targets and predictions (music2vec); how many units the predictions use, or how much they know of
the music; and the learning rate.

    python examples/plot_training.py runs/music2vec runs/music_hubert --out curves.png --table
"""

import argparse
import json
import math
import re
import statistics
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from music_ssl_fairseq.errors import InputError
from music_ssl_fairseq.frames import SAMPLE_RATE
from music_ssl_fairseq.runtime.files import atomic_path

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# hydra's `[date][train_inner][INFO] - {...}`, and `date | INFO | train_inner | {...}` elsewhere.
LOG_LINE = re.compile(r"(?:\]\[|\| )(train_inner|train|valid\w*)(?:\]\[INFO\] - | \| )(\{.*\})\s*$")

# Okabe and Ito's colours, told apart by the colour-blind; the line styles help in print.
BLUE, VERMILION, GREY = "#0072B2", "#D55E00", "#555555"

Points = dict[int, dict[str, float]]
"""What was logged at each number of updates."""


@dataclass
class Curves:
    """One run's log. After a resume the later of two lines for the same update counts."""

    folder: Path
    train: Points
    valid: Points

    @property
    def name(self) -> str:
        return self.folder.resolve().name


def read_log(folder: Path) -> Curves:
    """Read `hydra_train.log` of a run's folder.

    Raises:
        InputError: if there is none, or it holds no training statistics in JSON.
    """
    file = folder / "hydra_train.log"
    if not file.is_file():
        raise InputError(f"{file}: no such log; name the run's folder, its hydra.run.dir")
    found: dict[str, Points] = {"train_inner": {}, "train": {}, "valid": {}}
    with file.open(encoding="utf-8", errors="replace") as lines:
        for line in lines:
            if match := LOG_LINE.search(line):
                tag, stats = match[1], numbers(match[2], match[1])
                points = found["valid" if tag.startswith("valid") else tag]
                if "num_updates" in stats:
                    points[int(stats["num_updates"])] = stats
    # A run shorter than `log_interval` has the line at the end of the epoch only.
    train = found["train_inner"] or found["train"]
    if not train:
        raise InputError(
            f"{file}: holds no training statistics in JSON; train with common.log_format=json, "
            "for at least common.log_interval updates"
        )
    return Curves(folder, dict(sorted(train.items())), dict(sorted(found["valid"].items())))


def numbers(text: str, tag: str) -> dict[str, float]:
    """The numbers of one logged object, without the `valid_` that fairseq puts before names."""
    return {
        key.removeprefix(f"{tag}_"): number
        for key, value in json.loads(text).items()
        if (number := as_number(value)) is not None
    }


def as_number(value: object) -> float | None:
    """fairseq logs numbers as text, and now and then a list."""
    try:
        return float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return None


def series(points: Points, key: str) -> tuple[list[int], list[float]]:
    """Updates and values of one key, where it was logged."""
    pairs = [(update, stats[key]) for update, stats in points.items() if key in stats]
    return [update for update, _ in pairs], [value for _, value in pairs]


def line(axes: "Axes", points: Points, key: str, label: str, colour: str, style: str = "-") -> None:
    updates, values = series(points, key)
    if updates:
        marker = "o" if len(updates) < 25 else None
        axes.plot(updates, values, style, color=colour, label=label, marker=marker, markersize=3.5)


def loss_key(curves: Curves) -> str:
    """musicHuBERT's `loss` holds a penalty on the features as well; `loss_m` can be compared."""
    return "loss_m" if series(curves.train, "loss_m")[1] else "loss"


def draw_loss(axes: "Axes", curves: Curves) -> None:
    key = loss_key(curves)
    axes.set_ylabel("loss, bits a masked frame" if key == "loss_m" else "loss a masked frame")
    line(axes, curves.train, key, "train", BLUE)
    line(axes, curves.valid, key, "valid", VERMILION, "--")


def draw_health(axes: "Axes", curves: Curves) -> None:
    """The curve that shows a collapse: accuracy on the baseline, or spread at zero."""
    if series(curves.train, "accuracy_m")[1]:
        axes.set_ylabel("accuracy on masked frames")
        line(axes, curves.train, "accuracy_m", "train", BLUE)
        line(axes, curves.valid, "accuracy_m", "valid", VERMILION, "--")
        line(axes, curves.train, "majority_m", "commonest unit (train)", GREY, ":")
    else:
        axes.set_ylabel("standard deviation over frames")
        line(axes, curves.train, "target_var", "targets", BLUE)
        line(axes, curves.train, "pred_var", "predictions", VERMILION, "--")
        # Without dropout's noise: what the model itself tells apart.
        line(axes, curves.valid, "pred_var", "predictions (valid)", GREY, ":")
    axes.set_ylim(bottom=0)


def draw_content(axes: "Axes", curves: Curves) -> None:
    """What the predictions say: how many units they name, or how much they know of the music."""
    if series(curves.train, "accuracy_m")[1]:
        axes.set_ylabel("units in use (perplexity)")
        line(axes, curves.train, "perplexity_pred", "predictions", BLUE)
        line(axes, curves.valid, "perplexity_pred", "predictions (valid)", VERMILION, "--")
        line(axes, curves.train, "perplexity_target", "labels", GREY, ":")
    else:
        axes.set_ylabel("share of the squared error")
        line(axes, curves.train, "pred_music", "saved by knowing the crop", BLUE)
        line(axes, curves.valid, "pred_music", "the same (valid)", VERMILION, "--")
        line(axes, curves.train, "target_position", "of targets, due to position", GREY, ":")
    axes.set_ylim(bottom=0)


def draw_learning_rate(axes: "Axes", curves: Curves) -> None:
    axes.set_ylabel("learning rate")
    axes.set_xlabel("updates")
    line(axes, curves.train, "lr", "lr", BLUE)
    axes.ticklabel_format(axis="y", style="sci", scilimits=(0, 0))


def draw(runs: Sequence[Curves], out: Path) -> None:
    """Write the picture, atomically."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(1 + 4.5 * len(runs), 9), layout="constrained")
    FigureCanvasAgg(figure)
    rows = {draw_loss: 3, draw_health: 3, draw_content: 3, draw_learning_rate: 1.5}
    panels = figure.subplots(
        len(rows), len(runs), sharex="col", squeeze=False, height_ratios=[*rows.values()]
    )
    for column, curves in enumerate(runs):
        panels[0, column].set_title(curves.name)
        for row, panel in enumerate(rows):
            axes = panels[row, column]
            panel(axes, curves)
            axes.grid(alpha=0.3)
            if panel is not draw_learning_rate and axes.lines:
                axes.legend(frameon=False)
    with atomic_path(out) as temporary:
        figure.savefig(temporary, dpi=130)


def last(points: Points, key: str) -> float:
    """The last value logged, or NaN."""
    return (series(points, key)[1] or [math.nan])[-1]


def table(runs: Sequence[Curves]) -> str:
    """A Markdown table, one row a run."""
    rows = [
        "| run | updates | train loss | valid loss | health | audio s/s | checkpoint |",
        "|---|---|---|---|---|---|---|",
    ]
    return "\n".join([*rows, *map(row, runs)])


def row(curves: Curves) -> str:
    train, valid = curves.train, curves.valid
    key = loss_key(curves)
    _, losses = series(train, key)
    # The first interval holds the start of the workers and, on a GPU, the choice of kernels.
    speeds = [speed / SAMPLE_RATE for speed in series(train, "wps")[1][1:]]
    cells = [
        curves.name,
        str(max([*train, *valid])),
        f"{losses[0]:.3f} → {losses[-1]:.3f}" if losses else "",
        f"{last(valid, key):.3f}" if valid else "",
        health(train),
        f"{statistics.median(speeds):.0f}" if speeds else "",
        checkpoint(curves.folder),
    ]
    return f"| {' | '.join(cells)} |"


def health(train: Points) -> str:
    """What tells a run that learns from one that collapsed."""
    if series(train, "accuracy_m")[1]:
        accuracy, majority = last(train, "accuracy_m"), last(train, "majority_m")
        return f"masked accuracy {accuracy:.3f}, commonest unit {majority:.3f}"
    if series(train, "target_var")[1]:
        targets, predictions = last(train, "target_var"), last(train, "pred_var")
        music = last(train, "pred_music")
        known = "" if math.isnan(music) else f", error saved by knowing the crop {music:.1%}"
        return f"std. of targets {targets:.3f}, of predictions {predictions:.3f}{known}"
    return ""


def checkpoint(folder: Path) -> str:
    for name in ("checkpoint_best.pt", "checkpoint_last.pt"):
        if (folder / "checkpoints" / name).is_file():
            return str(folder / "checkpoints" / name)
    return "none"


def get_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "runs", nargs="+", type=Path, metavar="RUN", help="folder with hydra_train.log"
    )
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("curves.png"),
        help="picture to write (default: %(default)s)",
    )
    parser.add_argument("--table", action="store_true", help="also print a Markdown table")
    return parser


def main() -> None:
    args = get_parser().parse_args()
    try:
        runs = [read_log(folder) for folder in args.runs]
    except InputError as error:
        sys.exit(f"error: {error}")
    draw(runs, args.out)
    if args.table:
        print(table(runs))


if __name__ == "__main__":
    main()
