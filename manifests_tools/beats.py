"""Read files of beat times: JAMS, or one line per beat."""

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

from manifests_tools.examine import ExaminedTrack
from manifests_tools.labelled import Labelled, as_it_is
from music_ssl_fairseq.errors import InputError
from music_ssl_fairseq.frames import SAMPLE_RATE
from music_ssl_fairseq.probing.spec import parse_number, parse_position
from music_ssl_fairseq.probing.writer import Example
from music_ssl_fairseq.runtime.texts import read_json, read_text


def read_beat_file(file: Path) -> tuple[str, ...]:
    """Read the beats of a `.jams` file, or of lines `seconds` or `seconds position`.

    A position is the beat's number in its bar, or `bar.beat`.

    Returns:
        Cells of a line of labels: `seconds`, or `seconds/position in the bar`.

    Raises:
        InputError: if the file holds no beats, or they are not ascending from 0 on.
    """
    if file.suffix.lower() == ".jams":
        return _from_jams(file)
    return _from_lines(file)


def require_ascending(times: Sequence[float]) -> None:
    """Refuse beats before 0 or out of order, with a ValueError that names the first one."""
    if len(times) and times[0] < 0:
        raise ValueError(f"a beat at {times[0]:g}, before the file begins")
    for before, time in pairwise(times):
        if time <= before:
            raise ValueError(_order(before, time))


def _order(before: float, time: float) -> str:
    how = "repeated" if time == before else f"after {before:g}"
    return f"beats are not ascending: {time:g} is {how}"


def _from_jams(file: Path) -> tuple[str, ...]:
    contents = read_json(file)
    empty = False
    try:
        for annotation in contents["annotations"]:
            # GTZAN-Rhythm has several of the namespace: of beats, downbeats, and eighth notes.
            kind = (annotation.get("sandbox") or {}).get("annotation_type", "beat")
            if annotation["namespace"] == "beat" and kind == "beat":
                data = annotation["data"]
                times = data["time"] if isinstance(data, dict) else [beat["time"] for beat in data]
                if not times:
                    empty = True
                    continue  # another annotation may have some
                numbers = sorted(parse_number(time) for time in times)
                require_ascending(numbers)
                return tuple(f"{number:.10g}" for number in numbers)
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
        reason = f"lacks {error}" if isinstance(error, KeyError) else str(error)
        raise InputError(f"{file}: not a file of beats ({reason})") from None
    reason = "without beats" if empty else "of the namespace `beat` and the type `beat` in it"
    raise InputError(f"{file}: {'only annotations' if empty else 'no annotation'} {reason}")


def _from_lines(file: Path) -> tuple[str, ...]:
    rows = [(i, line.split()) for i, line in enumerate(read_text(file).split("\n"), 1)]
    rows = [(number, cells) for number, cells in rows if cells]
    # `3.2` is beat 2 of bar 3, if any line has such a position; `3.0` alone is a 3.
    bars = any(len(cells) > 1 and cells[1].partition(".")[2].strip("0") for _, cells in rows)
    beats = [_beat(file, number, cells, bars) for number, cells in rows]
    if not beats:
        raise InputError(f"{file}: holds no beat")
    for (number, _), before, beat in zip(rows[1:], beats, beats[1:], strict=False):
        if beat.time <= before.time:
            raise _no_beat(file, number, _order(before.time, beat.time))
    return tuple(f"{beat.time:.10g}{beat.place}" for beat in beats)


class _Beat(NamedTuple):
    time: float
    place: str  # `/position`, or nothing


def _beat(file: Path, number: int, cells: list[str], bars: bool) -> _Beat:
    try:
        if len(cells) > 2:
            raise ValueError(f"{len(cells)} cells, not `seconds` or `seconds position`")
        time = parse_number(cells[0])
        require_ascending([time])
        return _Beat(time, f"/{_position(cells[1], bars)}" if len(cells) > 1 else "")
    except ValueError as error:
        raise _no_beat(file, number, str(error)) from None


def _no_beat(file: Path, number: int, reason: str) -> InputError:
    return InputError(f"{file}: not a file of beats (line {number}: {reason})")


def _position(text: str, bars: bool) -> int:
    bar, _, beat = text.partition(".")
    if bars:
        parse_position(bar)
        return parse_position(beat)
    if beat.strip("0"):
        raise ValueError(f"{text} is not a position in the bar")
    return parse_position(bar)


def beats_within(item: Labelled, track: ExaminedTrack) -> list[Example]:
    """Return the file with its beats before its end; nothing if there are none."""
    seconds = track.num_samples / SAMPLE_RATE
    beats = tuple(beat for beat in item.label if float(beat.partition("/")[0]) < seconds)
    if not beats:
        return []
    return as_it_is(replace(item, label=beats), track)
