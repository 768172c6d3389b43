"""Command line of the report."""

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from music_ssl_fairseq.cli import BEGINS, Parser, exit_status, new_parser, whole_number
from music_ssl_fairseq.errors import InputError

if TYPE_CHECKING:
    from music_ssl_fairseq.report.gather import Probe

DESCRIPTION = """\
Gather scored probes into report.html, one page for the browser: a table that sorts (models and
tasks, best layer, confidence interval), intervals, scores by layer as curves and as a heat map, and
the curves of trainings whose logs lie in the same folders. The table is also in report.md and
report.csv. With --study, take results of examples/study, and write study.html, study.md,
differences.csv and figures.
"""

PAGE, STUDY_PAGE = "report.html", "study.html"

EXAMPLES = "example: python -m music_ssl_fairseq report runs/probing --out report"


def get_parser() -> Parser:
    parser = new_parser("music_ssl_fairseq report", DESCRIPTION, EXAMPLES)
    add = parser.option
    help = "folders with runs, at any depth (default: runs)"
    add("folders DIR", help, [Path("runs")], type=Path, nargs="*")
    add("--out", "folder to write to (default: report)", default=Path("report"))
    add("--split", "split that was scored: test or valid", default="test")
    add(
        "--resamples N",
        "resamples of the bootstrap behind the intervals",
        default=1000,
        type=whole_number(2),
    )
    add("--seed N", "seed of the bootstrap", default=0, type=whole_number(0))
    add("--no-plot", "leave out figures, for which matplotlib is needed", action="store_true")
    add("--study", "DIR is the results folder of examples/study", action="store_true")
    return parser


def run(a: argparse.Namespace) -> str:
    """Write the report, or that of a `study`, print its scores, and return its Markdown.

    Raises InputError if there is no scored probe, or a file of one is damaged.
    """
    if a.study:
        return _report_study(a.folders, a.out, a.no_plot)
    from music_ssl_fairseq.report.tables import aligned

    probes, text = write(a)
    print(f"{aligned(probes)}\nreport: {a.out / PAGE}")
    return text


def write(a: argparse.Namespace) -> tuple[list["Probe"], str]:
    """Write the report; return its probes, and its Markdown."""
    from music_ssl_fairseq.report import probe_figures, tables, training_curves
    from music_ssl_fairseq.report.gather import find
    from music_ssl_fairseq.runtime.files import write_text

    probes = find(a.folders, a.split, a.resamples, a.seed)
    text = tables.markdown(probes, a.split, a.resamples)
    write_text(a.out / "report.md", text)
    write_text(a.out / "report.csv", tables.comma_separated(probes))
    drawn = {}
    if not a.no_plot:
        drawn = probe_figures.draw(probes, a.split) | training_curves.draw_runs_below(a.folders)
    models, tasks = tables.models_of(probes), tables.tasks_of(probes)
    _write_page(a.out / PAGE, "Probes", f"models: {len(models)}, tasks: {len(tasks)}", text, drawn)
    return probes, text


def _report_study(folders: Sequence[Path], out: Path, no_plot: bool) -> str:
    from music_ssl_fairseq.report import study, study_figures, study_tables

    if len(folders) != 1:
        raise InputError("--study takes one folder of results")
    rows = study.read(folders[0])
    text = study_tables.write(rows, out)
    drawn = {} if no_plot else study_figures.draw(rows, out)
    lead = f"{len(rows)} rows of {folders[0].resolve().name}"
    _write_page(out / STUDY_PAGE, "Study", lead, text, drawn)
    print(f"{len(rows)} rows\nreport: {out / STUDY_PAGE}, {out / 'study.md'}")
    return text


def _write_page(file: Path, title: str, lead: str, text: str, figures: Mapping[str, str]) -> None:
    """Write tables in Markdown and figures in HTML, by their headings, as a page."""
    from music_ssl_fairseq.pages.page import Page, add_markdown

    page = Page(title, lead)
    add_markdown(page, text, figures)
    page.write(file)


def main(argv: Sequence[str] | None = None) -> int:
    arguments = get_parser().parse_args(argv)
    return exit_status(lambda: bool(run(arguments)), arguments.out, BEGINS)


if __name__ == "__main__":
    sys.exit(main())
