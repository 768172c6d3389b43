"""Draw how pre-training runs went, from the logs that fairseq writes.

Needs `common.log_format: json`, which the configs of this repository set. One column per run: its
loss; masked accuracy against always guessing the most frequent unit (musicHuBERT) or the spread of
targets and predictions (music2vec); how many units the predictions use, or how much they know of
the music; and the learning rate. `python -m music_ssl_fairseq report` has the same curves.

    python examples/plot_training.py runs/music2vec runs/music_hubert --out curves.png --table
"""

import argparse
import math
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path

from music_ssl_fairseq.cli import Parser, exit_status
from music_ssl_fairseq.errors import InputError
from music_ssl_fairseq.frames import SAMPLE_RATE
from music_ssl_fairseq.report.training_curves import (
    Curves,
    Points,
    draw,
    loss_key,
    read_log,
    series,
)
from music_ssl_fairseq.runtime.files import atomic_path


def last(points: Points, key: str) -> float:
    """Return the last value logged, or NaN."""
    return (series(points, key)[1] or [math.nan])[-1]


def markdown(runs: Sequence[Curves]) -> str:
    """Format a Markdown table, one row per run."""
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
    """Return what tells a run that learns from one that collapsed."""
    if series(train, "accuracy_m")[1]:
        accuracy, majority = last(train, "accuracy_m"), last(train, "majority_m")
        return f"masked accuracy {accuracy:.3f}, most frequent unit {majority:.3f}"
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


def get_parser() -> Parser:
    parser = Parser(
        prog=f"python {sys.argv[0]}",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.option
    add("runs RUN", "folders with hydra_train.log", nargs="+", type=Path)
    add("--out FILE", "picture to write", default=Path("curves.png"))
    add("--table", "print a Markdown table", action="store_true")
    return parser


def run(runs: Sequence[Path], out: Path, table: bool) -> None:
    """Draw the runs in these folders; print their table if asked, else where the picture is."""
    curves = [read_log(folder) for folder in runs]
    drawn = draw(curves)
    if out.suffix[1:].lower() not in drawn.canvas.get_supported_filetypes():
        raise InputError(f"{out}: no picture that can be written, such as FILE.png or FILE.svg")
    with atomic_path(out) as temporary:
        drawn.savefig(temporary, dpi=130)
    print(markdown(curves) if table else f"curves: {out}")


def main() -> int:
    args = get_parser().parse_args()
    return exit_status(lambda: run(**vars(args)), args.out)


if __name__ == "__main__":
    sys.exit(main())
