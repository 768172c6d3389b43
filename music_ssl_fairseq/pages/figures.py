"""Draw figures for pages: SVG with the page's colours and fonts."""

import io
import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from music_ssl_fairseq.pages.page import escape
from music_ssl_fairseq.runtime.imports import optional

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

GREY = "#888888"
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#8C6BB1", "#7A7A7A")
"""Okabe and Ito's, told apart by the colour-blind; visible on light and on dark ground."""


def new_figure(width: float, height: float) -> "Figure":
    """Return an empty figure, in inches."""
    return optional("matplotlib.figure", "plot").Figure((width, height), layout="constrained")


def figure(drawn: "Figure", alt: str, caption: str = "") -> str:
    """Format a figure as HTML: its SVG in the text's colour, `alt` for screen readers."""
    from matplotlib import rc_context

    out = io.StringIO()
    # Text stays text; equal figures give equal files.
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": alt}):
        drawn.savefig(out, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    svg = out.getvalue()
    svg = svg[svg.index("<svg") :].replace("#000000", "currentColor")
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'<g id="[^"]*"', "<g", svg)  # a page has several figures, and one of each id
    # Black is SVG's default, so matplotlib leaves it out for text.
    label = f'role="img" aria-label="{escape(alt)}" fill="currentColor"'
    width = drawn.get_size_inches()[0]
    svg = re.sub(r'<svg (.*?)width="[^"]*"', rf"<svg {label} \1", svg, count=1, flags=re.DOTALL)
    svg = re.sub(r'height="[\d.]+pt" ', "", svg, count=1)
    note = f"<figcaption>{escape(caption)}</figcaption>" if caption else ""
    most, least = 90 * width, 60 * width  # narrower, text would be too small: the figure scrolls
    style = f"min-width:{least:.0f}px;max-width:{most:.0f}px"
    return f'<figure><div style="{style}">{svg}</div>{note}</figure>'


class Panels:
    """A grid of axes of a `figure`, with a legend below it; iterates over the axes."""

    def __init__(
        self,
        count: int,
        height: float = 2.5,
        share_y: bool = False,
        columns: int = 3,
        width: float = 3.2,
    ):
        columns = min(count, columns)
        rows = -(-count // columns)
        self.figure = new_figure(1.0 + width * columns, height * rows + 0.5)
        axes = self.figure.subplots(rows, columns, squeeze=False, sharey=share_y)
        self._axes = list(axes.flat)
        for number, one in enumerate(self._axes):
            one.tick_params(labelsize=8)
            one.set_visible(number < count)

    def __iter__(self) -> Iterator["Axes"]:
        return iter(self._axes)

    def add_legend(self) -> None:
        """Name what any of the panels shows, once."""
        known: dict[str, Any] = {}
        for axes in self._axes:
            lines, labels = axes.get_legend_handles_labels()
            known |= dict(zip(labels, lines, strict=True))
        self.figure.legend(
            list(known.values()),
            list(known),
            loc="outside lower center",
            ncols=4,
            fontsize=8,
            frameon=False,
        )
