"""Compute features of a file or of some of its frames, without holding a long file whole."""

from typing import NamedTuple

import numpy as np

from music_ssl_fairseq import audio
from music_ssl_fairseq.errors import AudioError
from music_ssl_fairseq.features import FrontEnd
from music_ssl_fairseq.features.framewise import Chunk
from music_ssl_fairseq.frames import LENGTH_TOLERANCE, SAMPLE_RATE, samples_in


class Track(NamedTuple):
    """One line of a manifest: the file, and its length in samples at 16 kHz."""

    path: str
    num_samples: int


def check_length(track: Track) -> None:
    """Compare a file's length with the manifest's.

    Raises:
        AudioError: if the file is missing, not audio, or differs by more than `LENGTH_TOLERANCE`.
    """
    length = audio.probe(track.path).length_at()
    if abs(length - track.num_samples) > samples_in(LENGTH_TOLERANCE):
        raise AudioError(
            track.path,
            f"lasts {length / SAMPLE_RATE:.2f} s, but its manifest says "
            f"{track.num_samples / SAMPLE_RATE:.2f} s; rebuild the manifest",
        )


def read_chunk(front_end: FrontEnd, track: Track, first: int, last: int) -> Chunk:
    """Decode what frames `[first, last)` of a track need, and no more.

    A file that ends earlier than the manifest says (`check_length` bounds by how much) is padded
    with zeros, so that frames and manifest agree.
    """
    start, stop = front_end.span(track.num_samples, first, last)
    waveform = audio.read(track.path, start, stop - start)
    if len(waveform) < stop - start:
        waveform = np.pad(waveform, (0, stop - start - len(waveform)))
    return Chunk(waveform, start, track.num_samples, first, last)
