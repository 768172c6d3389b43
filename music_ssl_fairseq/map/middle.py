"""Find the middle of a song."""

import os
from typing import NamedTuple

from music_ssl_fairseq import audio
from music_ssl_fairseq.frames import SAMPLE_RATE


class Middle(NamedTuple):
    """A part of a song of `length` samples at 16 kHz: from `start` to before `stop`."""

    length: int
    start: int
    stop: int


def middle_of(path: str | os.PathLike, seconds: float) -> Middle:
    """Return the middle `seconds` of a song, all of it if it is shorter."""
    length = audio.probe(path).length_at()
    part = round(min(length, seconds * SAMPLE_RATE))
    start = (length - part) // 2
    return Middle(length, start, start + part)
