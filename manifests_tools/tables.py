"""Metadata of data sets: finding their files, and reading tables in what CSV dialect they have."""

import csv
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from music_ssl_fairseq.errors import InputError


def find_file(folders: Iterable[str | os.PathLike], names: Sequence[str], source: str) -> Path:
    """The first of `names` in the first of `folders` that has one.

    Args:
        source: where users get the file, for the error.

    Raises:
        InputError: if there is none.
    """
    places = [Path(folder) for folder in folders]
    for place in places:
        for name in names:
            if (place / name).is_file():
                return place / name
    searched = " nor in ".join(str(place) for place in places[:2])
    if len(places) > 2:
        searched += f" nor in {len(places) - 2} other places"
    raise InputError(f"{names[0]} is not in {searched}; it is part of {source}")


def read_cells(file: Path, delimiter: str = "\t", quoted: bool = False) -> list[list[str]]:
    """The cells of each line, without the white space around them; UTF-8, with any line ends.

    Args:
        quoted: whether cells may be in double quotes.

    Raises:
        InputError: if the file cannot be read or is not UTF-8.
    """
    try:
        with file.open(encoding="utf-8-sig", newline="") as handle:
            lines = csv.reader(
                handle,
                delimiter=delimiter,
                quoting=csv.QUOTE_MINIMAL if quoted else csv.QUOTE_NONE,
            )
            return [[cell.strip() for cell in line] for line in lines]
    except OSError as error:
        raise InputError(f"{file}: cannot be read ({error.strerror})") from None
    except UnicodeDecodeError as error:
        raise InputError(f"{file}: not UTF-8 text ({error})") from None
    except csv.Error as error:
        raise InputError(f"{file}: not a table ({error})") from None


def read_table(
    file: Path, columns: Sequence[str], delimiter: str = "\t", quoted: bool = False
) -> list[list[str]]:
    """Some columns of a table whose first line names them; empty lines are passed over.

    Raises:
        InputError: as `read_cells`, or if a column is missing, or a line is too short.
    """
    lines = read_cells(file, delimiter, quoted)
    header = lines[0] if lines else []
    missing = [column for column in columns if column not in header]
    if missing:
        raise InputError(f"{file}: no column {missing[0]!r} in its first line")
    places = [header.index(column) for column in columns]
    rows = []
    for number, cells in enumerate(lines[1:], 2):
        if not any(cells):
            continue
        if len(cells) <= max(places):
            raise InputError(
                f"{file}, line {number}: {len(cells)} cells, but the first line names "
                f"{len(header)} columns"
            )
        rows.append([cells[place] for place in places])
    return rows
