"""Write the page of a map of songs."""

import os
from argparse import Namespace
from collections.abc import Mapping, Sequence
from functools import partial
from typing import NamedTuple

import numpy as np

from music_ssl_fairseq import audio
from music_ssl_fairseq.data.left_out import LeftOut
from music_ssl_fairseq.frames import SAMPLE_RATE, amount, counted
from music_ssl_fairseq.jobs.pool import WorkerPool, ordered
from music_ssl_fairseq.pages.flat import flat_map, nearest
from music_ssl_fairseq.pages.page import Page, table

_CLIP_SECONDS = 8.0
_MIN_CLIP_SECONDS = 2.0
_MAX_PAGE_SECONDS = 4000.0  # of all clips together, some 20 MB


def middle_of(path: str | os.PathLike, seconds: float) -> tuple[int, int, int]:
    """Return a song's length, and the start and end of its middle `seconds`: samples at 16 kHz.

    A shorter song is its own middle.
    """
    length = audio.probe(path).length_at()
    part = round(min(length, seconds * SAMPLE_RATE))
    start = (length - part) // 2
    return length, start, start + part


class SongClip(NamedTuple):
    """A song's length in seconds, its clip as an MP3 file, and where the clip begins."""

    seconds: float
    sound: bytes
    start: float


def _middle_clip(seconds: float, path: str) -> SongClip:
    length, start, stop = middle_of(path, seconds)
    waveform = audio.read(path, start, stop - start) if stop > start else np.zeros(0)
    sound = audio.mp3(waveform, SAMPLE_RATE) if len(waveform) else b""
    return SongClip(length / SAMPLE_RATE, sound, start / SAMPLE_RATE)


def write_page(
    options: Namespace,
    songs: Sequence[str],
    vectors: Mapping[str, np.ndarray],
    description: str,
    left_out: Sequence[LeftOut],
) -> str:
    """Write the page; return its name and size.

    Raises AudioError if a song has gone since its vector was computed.

    Args:
        options: of the command line.
        songs: names below the folder; `left_out` have no vector.
        description: of the model.
    """
    folder, clip_seconds = options.folder, options.clip_seconds
    if clip_seconds is None:
        clip_seconds = max(_MIN_CLIP_SECONDS, min(_CLIP_SECONDS, _MAX_PAGE_SECONDS / len(songs)))
    paths = [str(folder / name) for name in songs]
    clips = list(ordered(partial(_middle_clip, clip_seconds), paths, WorkerPool(options.workers)))
    comparable = standardised(np.stack([vectors[name] for name in songs]))
    distances, others = nearest(comparable, options.neighbours)
    similarity = (1 - distances**2 / 2).round(3)  # of vectors of length 1
    plane = flat_map(comparable).round(4).tolist()
    music = amount(sum(clip.seconds for clip in clips) / 3600)
    lead = f"{counted(len(songs), 'song')}, {music} of music; {description}"
    page = Page(f"Song map of {folder.resolve().name}", lead, __package__, "map.js")
    page.add("Songs", page.part("map.html"))
    if left_out:
        rows = [[item.name, item.reason] for item in left_out]
        page.add(f"Left out: {len(left_out)}", table(["file", "reason"], rows))
    page.give(
        "songs",
        [
            {
                "name": name,
                "group": name.partition("/")[0] if "/" in name else "",  # its first folder
                "seconds": round(clip.seconds, 1),
                "start": round(clip.start, 1),
                "x": plane[i][0],
                "y": plane[i][1],
                "near": others[i].tolist(),
                "similarity": similarity[i].tolist(),
            }
            for i, (name, clip) in enumerate(zip(songs, clips, strict=True))
        ],
    )
    if clip_seconds:
        page.give_sounds([clip.sound for clip in clips])
    return page.write(options.out)


def standardised(vectors: np.ndarray) -> np.ndarray:
    """Give each value zero mean and unit variance over the songs, then each song length 1.

    Mean vectors of encoders share a large common part: without this, all songs look alike.
    """
    centred = vectors.astype(np.float64) - vectors.mean(axis=0, dtype=np.float64)
    deviation = centred.std(axis=0)
    scaled = centred / np.where(deviation > 0, deviation, 1)
    lengths = np.linalg.norm(scaled, axis=1, keepdims=True)
    return scaled / np.where(lengths > 0, lengths, 1)
