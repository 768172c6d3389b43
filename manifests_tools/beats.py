"""Files of beat times: JAMS, or a line for each beat."""

import json
from dataclasses import replace
from pathlib import Path

from manifests_tools.examine import Track
from manifests_tools.labelled import Labelled, as_it_is
from music_ssl_fairseq.data.probing_task import parse_number
from music_ssl_fairseq.data.probing_writer import Example
from music_ssl_fairseq.errors import InputError
from music_ssl_fairseq.frames import SAMPLE_RATE


def read_beat_file(file: Path) -> tuple[str, ...]:
    """The beats of a `.jams` file, or of one with lines `seconds` or `seconds position`.

    Returns:
        Cells of a line of labels: `seconds`, or `seconds/position in the bar`.

    Raises:
        InputError: if the file holds no beats, or something else.
    """
    try:
        text = file.read_text(encoding="utf-8")
    except OSError as error:
        raise InputError(f"{file}: cannot be read ({error.strerror})") from None
    try:
        return tuple(_from_jams(text) if file.suffix == ".jams" else _from_lines(text))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{file}: not a file of beats ({error!r})") from None


def _from_jams(text: str) -> list[str]:
    for annotation in json.loads(text)["annotations"]:
        # GTZAN-Rhythm has several of the namespace: of beats, downbeats, and eighth notes.
        kind = (annotation.get("sandbox") or {}).get("annotation_type", "beat")
        if annotation["namespace"] == "beat" and kind == "beat":
            data = annotation["data"]
            times = data["time"] if isinstance(data, dict) else [beat["time"] for beat in data]
            return [f"{parse_number(time):.10g}" for time in sorted(times)]
    raise ValueError("no annotation of the namespace `beat` and the type `beat`")


def _from_lines(text: str) -> list[str]:
    beats = []
    for line in text.splitlines():
        cells = line.split()
        if cells:
            time = f"{parse_number(cells[0]):.10g}"
            beats.append(f"{time}/{int(float(cells[1]))}" if len(cells) > 1 else time)
    return beats


def beats_within(item: Labelled, track: Track) -> list[Example]:
    """The file with those of its beats that are before its end; nothing if there are none."""
    seconds = track.num_samples / SAMPLE_RATE
    beats = tuple(beat for beat in item.label if float(beat.partition("/")[0]) < seconds)
    if not beats:
        return []
    return as_it_is(replace(item, label=beats), track)
