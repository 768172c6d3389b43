"""Whether an audio file can be used, found out without decoding all of it."""

import argparse
import os
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from math import log10

from manifests_tools.parallel import parallel_map
from music_ssl_fairseq import audio
from music_ssl_fairseq.audio import AudioInfo
from music_ssl_fairseq.data.left_out import LeftOut
from music_ssl_fairseq.errors import AudioError
from music_ssl_fairseq.runtime.cpus import available_cpus

EDGE_SECONDS = 0.25
"""Decoded at the start and at the end of each file."""

SILENT = f"silent: nothing in it is louder than {20 * log10(audio.SILENCE):.0f} dB"
COPY = "a copy of another file"

BLOCK_SECONDS = 120
"""Decoded at a time where a file is decoded whole, so that memory does not grow with length."""


@dataclass(frozen=True)
class ExaminedTrack:
    """A usable file: name relative to the root, samples at 16 kHz, and the file's own rate."""

    name: str
    num_samples: int
    sample_rate: int
    silent: bool = False


def add_reading_options(parser: argparse.ArgumentParser) -> None:
    """The options of every command that examines files: `--thorough` and `--workers`."""
    parser.add_argument(
        "--thorough",
        action="store_true",
        help="decode every file whole, which finds damage and NaN in the middle; without it the "
        "header, the start and the end are read",
    )
    parser.add_argument(
        "--workers",
        type=int,
        default=available_cpus(),
        metavar="N",
        help="processes (default: one for each CPU, here %(default)s)",
    )


def examine(path: str, thorough: bool = False) -> AudioInfo:
    """Read the header and decode the start and the end, or with `thorough` all of the file.

    Damage and NaN in the middle are found only by the latter; a truncated file by either.

    Raises:
        AudioError: if the file is not audio, or damaged in what was read.
    """
    return listen(path, thorough)[0]


def listen(path: str, thorough: bool = False) -> tuple[AudioInfo, bool]:
    """As `examine`, and whether the file is silent: decoded whole only where both ends are.

    Raises:
        AudioError: as `examine`.
    """
    info = audio.probe(path)
    everything = list(blocks(info.num_samples, info.sample_rate))
    edge = int(EDGE_SECONDS * info.sample_rate)
    edges = [(0, min(edge, info.num_samples)), (max(0, info.num_samples - edge), info.num_samples)]

    def is_silent(part: tuple[int, int]) -> bool:
        # At the file's own rate: the very last sample, and no resampling.
        start, stop = part
        waveform = audio.read(path, start, stop - start, info.sample_rate)
        if len(waveform) < stop - start:
            raise AudioError(
                path, f"damaged: of {stop} samples {start + len(waveform)} are decoded"
            )
        return audio.is_silent(waveform)

    silent = [is_silent(part) for part in (everything if thorough else edges)]
    return info, all(silent) and (thorough or all(map(is_silent, everything)))


def blocks(num_samples: int, sample_rate: int) -> Iterator[tuple[int, int]]:
    """Bounds `[start, stop)` of consecutive parts of `BLOCK_SECONDS`; the last one is shorter."""
    size = BLOCK_SECONDS * sample_rate
    for start in range(0, num_samples, size):
        yield start, min(num_samples, start + size)


def examine_tracks(
    root: str, names: list[str], min_seconds: float, thorough: bool, workers: int
) -> tuple[list[ExaminedTrack], list[LeftOut]]:
    """Examine files in parallel: the usable ones in the order of `names`, and the others."""
    function = partial(_examine_track, root=root, min_seconds=min_seconds, thorough=thorough)
    tracks, left_out = [], []
    for result in parallel_map(function, names, workers, "reading audio"):
        if isinstance(result, ExaminedTrack):
            tracks.append(result)
        else:
            left_out.append(result)
    return tracks, left_out


def _examine_track(
    name: str, root: str, min_seconds: float, thorough: bool
) -> ExaminedTrack | LeftOut:
    try:
        info, silent = listen(os.path.join(root, name), thorough)
    except AudioError as error:
        return LeftOut(name, error.reason)
    seconds = info.num_samples / info.sample_rate
    if info.num_samples == 0 or seconds < min_seconds:
        return LeftOut(name, f"too short: {seconds:.3f} s, at least {min_seconds:g} s are needed")
    return ExaminedTrack(name, info.length_at(), info.sample_rate, silent)
