"""Read files of beat times: JAMS, or one line per beat."""

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

from manifests_tools.examine import ExaminedTrack
from manifests_tools.labelled import Labelled, as_it_is
from music_ssl_fairseq.errors import InputError
from music_ssl_fairseq.frames import SAMPLE_RATE
from music_ssl_fairseq.probing.spec import parse_number, parse_position
from music_ssl_fairseq.probing.writer import Example
from music_ssl_fairseq.runtime.texts import read_json, read_text


def read_beat_file(file: Path) -> tuple[str, ...]:
    """Read the beats of a `.jams` file, or of lines `seconds` or `seconds position`.

    A position is the beat's number in its bar, or `bar.beat`. Each result is a cell of a line
    of labels: `seconds`, or `seconds/position in the bar`.

    Raises InputError if the file holds no beats, or they are not ascending from 0 on.
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
            how = "repeated" if time == before else f"after {before:g}"
            raise ValueError(f"beats are not ascending: {time:g} is {how}")


def _from_jams(file: Path) -> tuple[str, ...]:
    contents = read_json(file)
    found = False
    try:
        for annotation in contents["annotations"]:
            # GTZAN-Rhythm has several of the namespace: of beats, downbeats, and eighth notes.
            kind = (annotation.get("sandbox") or {}).get("annotation_type", "beat")
            if annotation["namespace"] != "beat" or kind != "beat":
                continue
            found = True
            data = annotation["data"]
            times = data["time"] if isinstance(data, dict) else [beat["time"] for beat in data]
            if times:  # otherwise another annotation may have some
                numbers = sorted(parse_number(time) for time in times)
                require_ascending(numbers)
                return tuple(f"{number:.10g}" for number in numbers)
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
        reason = f"lacks {error}" if isinstance(error, KeyError) else str(error)
        raise InputError(f"{file}: not a file of beats ({reason})") from None
    if found:
        raise InputError(f"{file}: only annotations without beats")
    raise InputError(f"{file}: no annotation of the namespace `beat` and the type `beat` in it")


def _from_lines(file: Path) -> tuple[str, ...]:
    rows = [(i, line.split()) for i, line in enumerate(read_text(file).split("\n"), 1)]
    rows = [(number, cells) for number, cells in rows if cells]
    # `3.2` is beat 2 of bar 3, if any line has such a position; `3.0` alone is a 3.
    bars = any(len(cells) > 1 and cells[1].partition(".")[2].strip("0") for _, cells in rows)
    beats: list[str] = []
    times: list[float] = []
    for number, cells in rows:
        try:
            if len(cells) > 2:
                raise ValueError(f"{len(cells)} cells, not `seconds` or `seconds position`")
            times.append(parse_number(cells[0]))
            require_ascending(times[-2:])
            place = f"/{_position(cells[1], bars)}" if len(cells) > 1 else ""
        except ValueError as error:
            raise InputError(f"{file}: not a file of beats (line {number}: {error})") from None
        beats.append(f"{times[-1]:.10g}{place}")
    if not beats:
        raise InputError(f"{file}: holds no beat")
    return tuple(beats)


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
