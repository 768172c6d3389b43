"""Command line of the report."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from music_ssl_fairseq.cli import exit_status, new_parser, whole_number
from music_ssl_fairseq.errors import InputError

DESCRIPTION = """\
Gather scored probes into report.html, one page for the browser: a table that sorts (models and
tasks, best layer, confidence interval), intervals, scores by layer as curves and as a heat map, and
the curves of trainings whose logs lie in the same folders. The table is also in report.md and
report.csv. With --study, take results of examples/study, and write study.html, study.md,
differences.csv and figures.
"""

PAGE, STUDY_PAGE = "report.html", "study.html"

EXAMPLES = "example: python -m music_ssl_fairseq report runs/probing --out report"


def get_parser() -> argparse.ArgumentParser:
    parser = new_parser("music_ssl_fairseq report", DESCRIPTION, EXAMPLES)
    add = parser.add_argument
    add("folders", nargs="+", type=Path, metavar="DIR", help="folders with runs, at any depth")
    add(
        "--out",
        type=Path,
        default=Path("report"),
        metavar="DIR",
        help="folder to write to (default: report)",
    )
    add("--split", default="test", help="split that was scored: test or valid (default: test)")
    add(
        "--resamples",
        type=whole_number(2),
        default=1000,
        metavar="N",
        help="resamples of the bootstrap behind the intervals (default: 1000)",
    )
    add(
        "--seed",
        type=whole_number(0),
        default=0,
        metavar="N",
        help="seed of the bootstrap (default: 0)",
    )
    add("--no-plot", action="store_true", help="leave out figures, for which matplotlib is needed")
    add("--study", action="store_true", help="DIR is the results folder of examples/study")
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
    """Write the report, or that of a `study`, and return its Markdown.

    Raises:
        InputError: if there is no scored probe, or a file of one is damaged.
    """
    from music_ssl_fairseq.report import floors, page, tables, training
    from music_ssl_fairseq.report.gather import find
    from music_ssl_fairseq.runtime.files import write_text

    if study:
        return _report_study(folders, out, no_plot)
    probes = find(folders, split, resamples, seed)
    known = floors.rows(probes, split)
    text = tables.markdown(probes, split, resamples, known)
    write_text(out / "report.md", text)
    write_text(out / "report.csv", tables.comma_separated(probes))
    runs = [] if no_plot else training.find_runs(folders)
    page.write(probes, known, runs, split, out / PAGE, not no_plot)
    return text


def _report_study(folders: Sequence[Path], out: Path, no_plot: bool) -> str:
    from music_ssl_fairseq.pages.figures import figure
    from music_ssl_fairseq.pages.page import Page, add_markdown
    from music_ssl_fairseq.report import study, study_figures, study_tables

    if len(folders) != 1:
        raise InputError("--study takes one folder of results")
    rows = study.read(folders[0])
    text = study_tables.write(rows, out)
    drawn = {} if no_plot else study_figures.draw(rows, out)
    page = Page("Study", f"{len(rows)} rows of {folders[0].resolve().name}")
    add_markdown(page, text, "Scores")
    for name, shown in drawn.items():
        page.add(f"Figure: {Path(name).stem}", figure(shown, f"{Path(name).stem} of all rows"))
    page.write(out / STUDY_PAGE)
    return text


def main(argv: Sequence[str] | None = None) -> int:
    arguments = get_parser().parse_args(argv)
    page = arguments.out / (STUDY_PAGE if arguments.study else PAGE)

    def work() -> None:
        print(run(**vars(arguments)))
        print(f"page: {page}")

    return exit_status(work, arguments.out, "interrupted")


if __name__ == "__main__":
    sys.exit(main())
