"""Build a page and write it as one file."""

import base64
import json
import re
from collections.abc import Mapping, Sequence
from html import escape
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import Any, NamedTuple

from music_ssl_fairseq.runtime.files import write_text

__all__ = ["Cell", "Page", "escape", "facts", "paragraph", "table"]


_UNSORTED = ' data-sort="no"'
"""Attribute of a column without a name."""


class Cell(NamedTuple):
    """A cell whose text is not what the column is sorted by."""

    text: str  # what is shown
    value: float | str | None  # what is sorted by; None sorts last
    best: bool = False  # whether it is shown in bold
    note: str = ""  # shown small below


class Page:
    """A page in the making; sections appear in the order in which they are added.

    `title` and `lead`, sentences below it, are plain text. `package` has the page's own parts, and
    `script` is the one of them that runs after `page.js`, if there is one.
    """

    def __init__(self, title: str, lead: str, package: str = __package__, script: str = ""):
        self._title = title
        self._lead = lead
        self._package = package
        self._script = self.part(script) if script else ""
        self._sections: list[tuple[str, str]] = []
        self._data: dict[str, Any] = {}

    def part(self, name: str) -> str:
        """Return the text of a file in the page's package."""
        return files(self._package).joinpath(name).read_text("utf-8")

    def add(self, heading: str, *parts: str) -> None:
        """Add a section of HTML parts; those that are empty are left out."""
        self._sections.append((heading, "\n".join(part for part in parts if part)))

    def give(self, name: str, value: Any) -> None:
        """Give the scripts a value, which `read(name)` returns there."""
        self._data[name] = value

    def give_sounds(self, sounds: Sequence[bytes]) -> None:
        """Give the player its sounds, each an MP3 file."""
        self.give("sounds", [base64.b64encode(sound).decode("ascii") for sound in sounds])

    def write(self, file: Path) -> str:
        """Write the page atomically; return its name and size, for people."""
        write_text(file, self._html())
        return f"{file} ({file.stat().st_size / 1e6:.1f} MB)"

    def _html(self) -> str:
        ours = files(__package__)
        names = ["to-" + re.sub(r"\W+", "-", heading.lower()) for heading, _ in self._sections]
        headings = [escape(heading) for heading, _ in self._sections]
        links = [
            f'<a href="#{name}">{heading}</a>'
            for name, heading in zip(names, headings, strict=True)
        ]
        sections = [
            f'<section id="{name}">\n<h2>{heading}</h2>\n{contents}\n</section>'
            for name, heading, (_, contents) in zip(names, headings, self._sections, strict=True)
        ]
        data = []
        for name, value in self._data.items():
            text = json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
            # In a script element, "</script" and "<!--" alone have a meaning.
            text = text.replace("<", "\\u003c")
            data.append(f'<script type="application/json" id="{name}">{text}</script>')
        return Template(ours.joinpath("page.html").read_text("utf-8")).substitute(
            title=escape(self._title),
            lead=escape(self._lead),
            links="\n".join(links) if len(links) > 1 else "",
            main="\n".join(sections),
            style=ours.joinpath("page.css").read_text("utf-8"),
            script=ours.joinpath("page.js").read_text("utf-8") + self._script,
            data="\n".join(data),
        )


def paragraph(text: str, kind: str = "") -> str:
    """Format a paragraph of plain text."""
    return f'<p class="{kind}">{escape(text)}</p>' if kind else f"<p>{escape(text)}</p>"


def facts(values: Mapping[str, str]) -> str:
    """Format a few named figures, side by side."""
    pairs = (f"<div><dt>{escape(k)}</dt><dd>{escape(v)}</dd></div>" for k, v in values.items())
    return f'<dl class="facts">{"".join(pairs)}</dl>'


def table(header: Sequence[str], rows: Sequence[Sequence[str | Cell]], caption: str = "") -> str:
    """Format a table that sorts by a click on a column's name.

    A column with numbers, but for the first column, stands to the right; its texts sort last.
    """
    cells = [[c if isinstance(c, Cell) else Cell(c, c) for c in row] for row in rows]
    right = [
        bool(i) and any(not isinstance(row[i].value, str | None) for row in cells)
        for i in range(len(header))
    ]
    head = "".join(
        f'<th scope="col"{_class(right[i], False)}{_UNSORTED * (not name)}>{escape(name)}</th>'
        for i, name in enumerate(header)
    )
    body = "\n".join(f"<tr>{''.join(map(_cell, row, right))}</tr>" for row in cells)
    note = f'<p class="note">{escape(caption)}</p>' if caption else ""
    return (
        f'<div class="scroll"><table class="sortable"><thead><tr>{head}</tr></thead>\n'
        f"<tbody>{body}</tbody></table></div>{note}"
    )


def _cell(cell: Cell, right: bool) -> str:
    unsortable = cell.value is None or (right and isinstance(cell.value, str))
    value = "" if unsortable else escape(str(cell.value))
    note = f"<small>{escape(cell.note)}</small>" if cell.note else ""
    return f'<td data-value="{value}"{_class(right, cell.best)}>{escape(cell.text)}{note}</td>'


def _class(right: bool, best: bool) -> str:
    names = " ".join(["number"] * right + ["best"] * best)
    return f' class="{names}"' if names else ""


_NUMBER = re.compile(r"[+-]?\d+(\.\d+)?")


def add_markdown(page: Page, text: str, figures: Mapping[str, str]) -> None:
    """Add the text before the first `##` as "Scores", then a section per figure and per `##`."""
    scores, *others = re.split(r"^## ", text, flags=re.MULTILINE)
    page.add("Scores", _blocks(scores))
    for heading, figure in figures.items():
        page.add(heading, figure)
    for heading, _, contents in (part.partition("\n") for part in others):
        page.add(heading, _blocks(contents))


def _blocks(text: str) -> str:
    return "\n".join(_block(block.strip("\n")) for block in re.split(r"\n\n+", text) if block)


def _block(text: str) -> str:
    lines = text.split("\n")
    if lines[0].startswith("# "):  # the page's own title
        return ""
    if lines[0].startswith("|"):
        rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
        return table(rows[0], [[_to_cell(cell) for cell in row] for row in rows[2:]])
    if lines[0].startswith("- "):
        items = "".join(f"<li>{_bold(line.removeprefix('- '))}</li>" for line in lines)
        return f"<ul>{items}</ul>"
    return paragraph(text) if "**" not in text else f"<p>{_bold(text)}</p>"


def _to_cell(text: str) -> Cell:
    """Make a cell, sorted by a number that it begins with; what follows in brackets is a note."""
    plain, bracket, note = text.replace("**", "").partition(" [")
    found = _NUMBER.match(plain)
    best = "**" in text
    return Cell(plain, float(found[0]) if found else plain or None, best, (bracket + note).strip())


def _bold(text: str) -> str:
    return re.sub(r"\*\*(.+?)\*\*", r"<b>\1</b>", escape(text))
