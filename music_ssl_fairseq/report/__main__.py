"""Command line of the report."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from music_ssl_fairseq.cli import exit_status, new_parser
from music_ssl_fairseq.errors import InputError

DESCRIPTION = """\
Gather scored probes into a table (models and tasks, best layer, confidence interval), as report.md
and report.csv, and a heat map of layers and tasks, layers.png. With --study, take
results of examples/study, and write study.md, differences.csv and figures.
"""

EXAMPLES = "example: python -m music_ssl_fairseq.report runs/probing --out report"


def get_parser() -> argparse.ArgumentParser:
    parser = new_parser("music_ssl_fairseq.report", DESCRIPTION, EXAMPLES)
    parser.add_argument(
        "folders", nargs="+", type=Path, metavar="DIR", help="folders with runs, at any depth"
    )
    parser.add_argument(
        "--out", type=Path, default=Path("report"), help="folder to write to (default: report)"
    )
    parser.add_argument(
        "--split", default="test", help="which split was scored: test or valid (default: test)"
    )
    parser.add_argument(
        "--resamples", type=int, default=1000, help="resamples of the bootstrap (default: 1000)"
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of the bootstrap (default: 0)")
    parser.add_argument("--no-plot", action="store_true", help="no heat map: needs no matplotlib")
    parser.add_argument(
        "--study", action="store_true", help="DIR is the results folder of examples/study"
    )
    return parser


def run(
    folders: Sequence[Path],
    out: Path,
    split: str = "test",
    resamples: int = 1000,
    seed: int = 0,
    no_plot: bool = False,
    study: bool = False,
) -> str:
    """Write the report, and return its Markdown.

    Args:
        study: the folder holds rows of examples/study.

    Raises:
        InputError: if there is no scored probe, or a file of one is damaged.
    """
    from music_ssl_fairseq.report import heat_map, tables
    from music_ssl_fairseq.report.gather import find
    from music_ssl_fairseq.runtime.files import atomic_path

    if study:
        return _report_study(folders, out, no_plot)
    if resamples < 2:
        raise InputError("--resamples must be at least 2")
    probes = find(folders, split, resamples, seed)
    text = tables.markdown(probes, split, resamples)
    for name, contents in (("md", text), ("csv", tables.comma_separated(probes))):
        with atomic_path(out / f"report.{name}") as temporary:
            temporary.write_text(contents, encoding="utf-8")
    if not no_plot:
        heat_map.draw(probes, out / "layers.png")
    return text


def _report_study(folders: Sequence[Path], out: Path, no_plot: bool) -> str:
    from music_ssl_fairseq.report import study, study_figures

    if len(folders) != 1:
        raise InputError("--study takes one folder of results")
    rows = study.read(folders[0])
    text = study.write(rows, out)
    if not no_plot:
        study_figures.draw(rows, out)
    return text


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return its exit status."""
    arguments = get_parser().parse_args(argv)
    return exit_status(lambda: print(run(**vars(arguments))), arguments.out, "interrupted")


if __name__ == "__main__":
    sys.exit(main())
