"""Show a report's Markdown on a page: headings, paragraphs, lists, tables and bold text."""

import re

from music_ssl_fairseq.pages.page import Cell, Page, escape, paragraph, table

_NUMBER = re.compile(r"[+-]?\d+(\.\d+)?")


def add_markdown(page: Page, text: str, first: str) -> None:
    """Add a section per heading; what is before the first `##` has the heading `first`."""
    for number, part in enumerate(re.split(r"^## ", text, flags=re.MULTILINE)):
        heading, _, contents = part.partition("\n") if number else (first, "", part)
        blocks = (block.strip("\n") for block in re.split(r"\n\n+", contents))
        page.add(heading, *(_block(block) for block in blocks if block))


def _block(text: str) -> str:
    lines = text.split("\n")
    if lines[0].startswith("# "):  # the page's own title
        return ""
    if lines[0].startswith("|"):
        rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
        return table(rows[0], [[_cell(cell) for cell in row] for row in rows[2:]])
    if lines[0].startswith("- "):
        items = "".join(f"<li>{_bold(line.removeprefix('- '))}</li>" for line in lines)
        return f"<ul>{items}</ul>"
    return paragraph(text) if "**" not in text else f"<p>{_bold(text)}</p>"


def _cell(text: str) -> Cell:
    """Make a cell; one that begins with a number is sorted by it, and one in bold stays so."""
    plain = text.strip("*")
    found = _NUMBER.match(plain)
    return Cell(plain, float(found[0]) if found else plain or None, plain != text)


def _bold(text: str) -> str:
    return re.sub(r"\*\*(.+?)\*\*", r"<b>\1</b>", escape(text))
