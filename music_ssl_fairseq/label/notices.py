"""Warn about labelled splits: labels all alike, silence, copies, little validation."""

from collections.abc import Iterator
from typing import Any

from music_ssl_fairseq import audio
from music_ssl_fairseq.data.audio_identity import changed_audio
from music_ssl_fairseq.data.copies import find_copies
from music_ssl_fairseq.data.manifest import Manifest, concerns
from music_ssl_fairseq.errors import AudioError
from music_ssl_fairseq.frames import SAMPLE_RATE

_CHUNK_SAMPLES = 60 * SAMPLE_RATE
_NEARLY_ALL = 0.9  # share of all labels


def is_silent(manifest: Manifest, track: int) -> bool:
    """Tell whether a track is silent; False if it cannot be read."""
    path = manifest.path(track)
    starts = range(0, int(manifest.num_samples[track]), _CHUNK_SAMPLES)
    try:
        return all(audio.is_silent(audio.read(path, start, _CHUNK_SAMPLES)) for start in starts)
    except AudioError:
        return False


def notices(splits: dict[str, Manifest], records: dict[str, Any]) -> Iterator[str]:
    """Yield warnings about labelled splits, with their `records` in metadata.json."""
    for split, manifest in splits.items():
        if found := changed_audio(manifest, records[split].get("audio"), "labels were"):
            yield found
        share = records[split]["majority_share"]
        if share > _NEARLY_ALL:
            yield (
                f"{split}: one unit has {100 * share:.1f} % of all labels, so they teach nothing: "
                "are the centroids of these features, and is the music more than noise or silence?"
            )
        silent = records[split].get("silent", [])
        if silent:
            yield (
                f"{split}: {len(silent)} of {len(manifest)} tracks are silent, and their frames "
                f"have labels all the same: take them out; the first is {manifest.path(silent[0])}"
            )
    if "valid" not in splits:
        return
    paths = [[m.path(i) for i in range(len(m))] for m in (splits["train"], splits["valid"])]
    copies = find_copies(paths[1], paths[0])
    if copies:
        first = next(iter(copies))
        yield (
            f"valid: {len(copies)} of {len(splits['valid'])} tracks are copies of tracks of train, "
            f"byte for byte; the first is {first}, a copy of {copies[first]}: make the manifests "
            "again, which leaves copies out"
        )
    yield from concerns(splits["valid"])
