"""Tell whether labels belong to these tracks in this order, by the names of some of them.

Tracks of equal length give no other sign: after another split, each has the labels of another.
"""

import os
from collections.abc import Callable
from hashlib import blake2b

import numpy as np

from music_ssl_fairseq.audio import EXTENSIONS, parse_member

Name = Callable[[int], str]
"""Function from a track's number to its name, as `Manifest.name`."""

_MOST_TRACKS = 1000
_DIGITS = 4


def some_of(count: int, most: int) -> list[int]:
    """Return at most `most` numbers below `count`, evenly spread, with the first and the last."""
    return np.unique(np.linspace(0, count - 1, min(most, count)).round().astype(int)).tolist()


def note_names(name: Name, count: int) -> str:
    """Return what `other_track` compares with; empty for tracks in shards, whose names say nothing.

    Neither folders nor suffixes count, so that tracks may be moved, or converted.
    """
    names = [name(track) for track in some_of(count, _MOST_TRACKS)]
    return "" if any(map(parse_member, names)) else "".join(map(_digest, names))


def other_track(name: Name, count: int, noted: object) -> int | None:
    """Return the first track found that is not the noted one; None if there is none.

    Args:
        noted: by `note_names`, of as many tracks; None if nothing was noted.
    """
    here = note_names(name, count)
    if not here or not isinstance(noted, str) or len(here) != len(noted):
        return None
    for place, track in enumerate(some_of(count, _MOST_TRACKS)):
        digits = slice(place * _DIGITS, (place + 1) * _DIGITS)
        if here[digits] != noted[digits]:
            return track
    return None


def _digest(name: str) -> str:
    stem, suffix = os.path.splitext(os.path.basename(name))
    while suffix.lower() in EXTENSIONS:  # a copy may be called song.mp3.flac
        stem, suffix = os.path.splitext(stem)
    stem += suffix
    return blake2b(os.fsencode(stem), digest_size=_DIGITS // 2).hexdigest()
