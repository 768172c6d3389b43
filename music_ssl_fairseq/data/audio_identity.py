"""Tell whether a manifest's tracks, and their audio, are what they were, wherever they lie."""

import os
import stat
from collections.abc import Callable
from functools import lru_cache
from hashlib import blake2b

import numpy as np

from music_ssl_fairseq.audio import EXTENSIONS, parse_member
from music_ssl_fairseq.data.manifest import Manifest

Name = Callable[[int], str]
"""Function from a track's number to its name, as `Manifest.name`."""

_MAX_COMPARED_TRACKS = 1000
_HEX_DIGITS = 4


def some_of(count: int, most: int) -> list[int]:
    """Return at most `most` numbers below `count`, evenly spread, with the first and the last."""
    return np.unique(np.linspace(0, count - 1, min(most, count)).round().astype(int)).tolist()


def note_names(name: Name, count: int) -> str:
    """Return what `other_track` compares with; empty for tracks in shards, whose names say nothing.

    Neither folders nor suffixes count, so that tracks may be moved, or converted.
    """
    names = [name(track) for track in some_of(count, _MAX_COMPARED_TRACKS)]
    return "" if any(map(parse_member, names)) else "".join(map(_name_digest, names))


def other_track(name: Name, count: int, noted: object) -> int | None:
    """Return the first track found that differs from the noted one, or None.

    Tracks of equal length give no other sign: after another split, each has the labels of another.
    `noted` comes from `note_names`, of as many tracks; None if nothing was noted.
    """
    here = note_names(name, count)
    if not here or not isinstance(noted, str) or len(here) != len(noted):
        return None
    for place, track in enumerate(some_of(count, _MAX_COMPARED_TRACKS)):
        digits = slice(place * _HEX_DIGITS, (place + 1) * _HEX_DIGITS)
        if here[digits] != noted[digits]:
            return track
    return None


def _name_digest(name: str) -> str:
    stem, suffix = os.path.splitext(os.path.basename(name))
    while suffix.lower() in EXTENSIONS:  # a copy may be called song.mp3.flac
        stem, suffix = os.path.splitext(stem)
    stem += suffix
    return blake2b(os.fsencode(stem), digest_size=_HEX_DIGITS // 2).hexdigest()


AUDIO = "audio of "
"""Beginning of the entries' names. Where files are missing there is no entry."""

_BLOCK_BYTES = 4096


@lru_cache(maxsize=8)
def audio_identity(manifest: Manifest, most: int = 200) -> str | None:
    """Digest the audio of all tracks; of more than `most` files, of so many throughout.

    None if a file is missing or no regular file, or is part of a shard. Each opened manifest is
    looked at once, however many label sets it has.
    """
    return audio_digest(manifest, range(len(manifest)), most)


def audio_digest(manifest: Manifest, tracks: range, most: int = 200) -> str | None:
    """Digest size and middle of the files of some tracks, each time anew: see `audio_identity`.

    The middle, because programs that write tags leave it alone, as long as the size stays.
    """
    digest = blake2b(digest_size=8)
    try:
        some = (tracks[place] for place in some_of(len(tracks), most))
        for path in dict.fromkeys(map(manifest.path, some)):
            status = os.stat(path)
            if not stat.S_ISREG(status.st_mode):
                return None  # opening a pipe would wait for a writer
            size = status.st_size
            with open(path, "rb", buffering=0) as file:
                file.seek(max(0, size - _BLOCK_BYTES) // 2)
                digest.update(b"%d " % size + file.read(_BLOCK_BYTES))
    except (OSError, ValueError):
        return None
    return digest.hexdigest()


def changed_audio(manifest: Manifest, noted: object, made: str) -> str | None:
    """Return a sentence if the audio has changed; None if it has not, or if that is unknown.

    `noted` is the `audio_identity` of when `made` was made, if any was noted.
    """
    found = audio_identity(manifest) if noted else None
    if found in (None, noted):
        return None
    return (
        f"{manifest.file}: its audio files have been replaced since {made} made from them. If "
        "more than tags has changed, run the command that made it again, with --force"
    )
