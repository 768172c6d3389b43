"""Find metadata files of data sets, and read tables of any CSV dialect."""

import csv
import io
import os
import shlex
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from music_ssl_fairseq.errors import InputError
from music_ssl_fairseq.runtime.texts import quoted, read_text

_MAX_BYTES = 256 << 20  # MagnaTagATune's table has 20 MB


class Line(NamedTuple):
    """A nonempty line of a table, and its line number in the file, from 1."""

    number: int
    cells: list[str]


class Table(NamedTuple):
    """The first line of a table, and the other lines."""

    header: list[str]
    lines: list[Line]
    delimiter: str


def find_file(folders: Iterable[str | os.PathLike], name: str, source: str) -> Path:
    """Return the file `name` in the first of `folders` that has one.

    Raises InputError if there is none; it names the `source` of the file.
    """
    places = [Path(folder) for folder in folders]
    for place in places:
        if (place / name).is_file():
            return place / name
    searched = " nor in ".join(str(place) for place in places[:2])
    if len(places) > 2:
        searched += f" nor in {len(places) - 2} other places"
    raise InputError(f"{name} is not in {searched}; it is part of {source}")


def read_lines(file: Path) -> list[Line]:
    """Read the cells of each line, separated by tabs; the file is UTF-8 with any line ends.

    Raises InputError if the file is no such table.
    """
    return list(
        _lines(file, csv.reader(_text(file), delimiter="\t", quoting=csv.QUOTE_NONE), False)
    )


def _text(file: Path) -> io.StringIO:
    return io.StringIO(read_text(file, largest=_MAX_BYTES), newline="")


def _lines(file: Path, reader: Iterator[list[str]], blanks: bool) -> Iterator[Line]:
    number = 1
    try:
        for cells in reader:
            broken = [cell for cell in cells if "\n" in cell or "\r" in cell]
            if broken:
                raise InputError(
                    f"{file}, line {number}: a line break within the cell {quoted(broken[0])}; is "
                    "a quote not closed?"
                )
            if any(stripped := [cell.strip() for cell in cells]):
                yield Line(number, cells if blanks else stripped)
            number = reader.line_num + 1  # type: ignore[attr-defined]
    except csv.Error as error:
        raise InputError(f"{file}, line {number}: not a table ({error})") from None


def read_named(
    file: Path,
    delimiters: str = "\t",
    quotes: bool = False,
    strict: bool = False,
    blanks: bool = False,
) -> Table:
    """Read a table whose first line names the columns.

    The file is read once, so it may be a pipe.

    Raises InputError as `read_lines`, or if two columns have one name, or a line has more cells.

    Args:
        delimiters: characters that may separate cells: that which the first line has most.
        quotes: whether cells may be in double quotes.
        strict: refuse quotes within a cell, which are ambiguous.
        blanks: keep those at both ends of a cell.
    """
    text = _text(file)
    delimiter = max(delimiters, key=text.readline().count)
    text.seek(0)
    reader = csv.reader(
        text,
        delimiter=delimiter,
        quoting=csv.QUOTE_MINIMAL if quotes else csv.QUOTE_NONE,
        strict=strict,
    )
    lines = list(_lines(file, reader, blanks))
    header = [name.strip() for name in lines[0].cells] if lines else []
    if header and header[0].startswith("sep="):
        message = f"{file}, line 1: names a separator for Excel, not the columns; remove it"
        raise InputError(message, shlex.join(["sed", "-i", "1d", str(file)]))
    for place, name in enumerate(header):
        if name and name in header[:place]:
            raise InputError(
                f"{file}, line {lines[0].number}: two columns are named {quoted(name)}; remove one"
            )
    while header and not header[-1]:
        header.pop()
    for number, cells in lines[1:]:
        beyond = [cell for cell in cells[len(header) :] if cell.strip()]
        if beyond:
            raise InputError(
                f"{file}, line {number}: {quoted(beyond[0])} is beyond the {len(header)} columns "
                f"that the first line names; a cell that holds the separator {delimiter!r} has to "
                "be in double quotes"
            )
    return Table(header, lines[1:], delimiter)


def read_table(
    file: Path, columns: Sequence[str], delimiter: str = "\t", quotes: bool = False
) -> dict[str, list[str]]:
    """Read some columns of a table whose first line names them, the first of which is an id.

    Returns id -> cells of the other columns.

    Raises InputError as `read_named`, or if a column is missing, a line is too short, or two lines
    of one id differ.
    """
    header, lines, _ = read_named(file, delimiter, quotes)
    missing = [column for column in columns if column not in header]
    if missing:
        raise InputError(f"{file}: no column {missing[0]!r} in its first line")
    places = [header.index(column) for column in columns]
    rows: dict[str, list[str]] = {}
    for number, cells in lines:
        if len(cells) <= max(places):
            raise InputError(
                f"{file}, line {number}: {len(cells)} cells, but the first line names "
                f"{len(header)} columns"
            )
        name, *others = (cells[place] for place in places)
        if rows.setdefault(name, others) != others:
            raise InputError(f"{file}: two lines of {name} differ; remove one")
    return rows
