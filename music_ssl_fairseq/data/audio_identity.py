"""Tell whether the audio of a manifest is what it was, wherever it lies."""

import os
from hashlib import blake2b
from weakref import WeakKeyDictionary

from music_ssl_fairseq.data.manifest import Manifest
from music_ssl_fairseq.data.track_names import some_of

AUDIO = "audio of "
"""What the names of entries begin with. There is none where files are missing."""

_BLOCK_BYTES = 4096


_known: WeakKeyDictionary[Manifest, dict[int, str | None]] = WeakKeyDictionary()


def audio_identity(manifest: Manifest, tracks: range | None = None, most: int = 200) -> str | None:
    """Digest size and middle of each file; of more than `most`, of so many throughout.

    The middle, because programs that write tags leave it alone, as long as the size stays. Each
    opened manifest is looked at once, however many label sets it has.

    Args:
        tracks: those to look at, each time anew; None for all.

    Returns:
        None if a file is missing, or is part of a shard.
    """
    if tracks is not None:
        return _digest(manifest, most, tracks)
    known = _known.setdefault(manifest, {})
    if most not in known:
        known[most] = _digest(manifest, most, range(len(manifest)))
    return known[most]


def _digest(manifest: Manifest, most: int, tracks: range) -> str | None:
    digest = blake2b(digest_size=8)
    try:
        some = (tracks[place] for place in some_of(len(tracks), most))
        for path in dict.fromkeys(map(manifest.path, some)):
            size = os.stat(path).st_size
            with open(path, "rb", buffering=0) as file:
                file.seek(max(0, size - _BLOCK_BYTES) // 2)
                digest.update(b"%d " % size + file.read(_BLOCK_BYTES))
    except (OSError, ValueError):
        return None
    return digest.hexdigest()


def changed_audio(manifest: Manifest, noted: object, made: str) -> str | None:
    """Say that the audio is not what it was; None if it is, or if that is not known.

    Args:
        noted: the `audio_identity` of when `made` was made, if any was noted.
    """
    found = audio_identity(manifest) if noted else None
    if found in (None, noted):
        return None
    return (
        f"{manifest.file}: its audio files have been replaced since {made} made from them; unless "
        "only their tags are others, make again what is older, with --force"
    )
