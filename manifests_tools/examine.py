"""Examine audio files in worker processes, without decoding all of them."""

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from math import log10
from typing import TypeVar

from tqdm import tqdm

from music_ssl_fairseq import audio
from music_ssl_fairseq.audio import AudioInfo
from music_ssl_fairseq.cli import Parser, add_workers
from music_ssl_fairseq.data.left_out import LeftOut
from music_ssl_fairseq.errors import AudioError
from music_ssl_fairseq.jobs.pool import WorkerPool, ordered

Item = TypeVar("Item")
Result = TypeVar("Result")

_GROUPS_PER_WORKER = 16  # at least, so that small inputs are spread over the workers as well


def parallel_map(
    function: Callable[[Item], Result],
    items: Sequence[Item],
    workers: int,
    description: str,
    chunk: int = 16,
) -> Iterator[Result]:
    """Yield `function(item)` for each item, in the order of `items`; see `jobs.pool.ordered`.

    libsndfile keeps the reason of a failed open in one variable for all threads, hence processes;
    one worker means this process. `function` and its results must be picklable.

    Raises InputError if a worker is killed, by the system or by a crash in a decoder.
    """
    workers = min(workers, len(items))
    size = max(1, min(chunk, len(items) // (_GROUPS_PER_WORKER * workers))) if workers > 1 else 1
    groups = (items[start : start + size] for start in range(0, len(items), size))
    advice = "--workers 1 shows after how many files"
    pool = WorkerPool(workers if workers > 1 else 0, fork=True, advice=advice)
    with tqdm(desc=description, total=len(items), unit=" files", disable=not items) as bar:
        for results in ordered(partial(_apply, function), groups, pool):
            for result in results:
                bar.update()
                yield result


def _apply(function: Callable[[Item], Result], items: Sequence[Item]) -> list[Result]:
    return [function(item) for item in items]


EDGE_SECONDS = 0.25
"""Decoded at the start and at the end of each file, unless --thorough."""

SILENT = f"silent: nothing in it is louder than {20 * log10(audio.SILENCE):.0f} dB"
COPY = "a copy of another file"

CHUNK_SECONDS = 120
"""Decoded at once: memory does not grow with a file's length."""


@dataclass(frozen=True)
class ExaminedTrack:
    """A usable file: name relative to the root, samples at 16 kHz, and the file's own rate."""

    name: str
    num_samples: int
    sample_rate: int
    silent: bool = False


def add_reading_options(parser: Parser) -> None:
    """Add the options of commands that examine files: `--thorough` and `--workers`."""
    parser.option(
        "--thorough",
        "decode every file whole, which finds damage and NaN in the middle; without it the "
        "header, the start and the end are read",
        action="store_true",
    )
    add_workers(parser, "processes")


def examine(path: str, thorough: bool = False) -> tuple[AudioInfo, bool]:
    """Return a file's header and whether it is silent.

    Both ends are decoded, or with `thorough` the whole file. Only that finds damage and NaN in the
    middle. A file with silent ends is decoded whole to tell whether it is silent.

    Raises AudioError if the file is not audio, or damaged where it was decoded.
    """
    info = audio.probe(path)
    everything = list(chunks(info.num_samples, info.sample_rate))
    edge = int(EDGE_SECONDS * info.sample_rate)
    edges = [(0, min(edge, info.num_samples)), (max(0, info.num_samples - edge), info.num_samples)]

    def is_silent(part: tuple[int, int]) -> bool:
        # Without resampling, to check the very last sample.
        start, stop = part
        waveform = audio.read(path, start, stop - start, info.sample_rate)
        if len(waveform) < stop - start:
            raise AudioError(
                path, f"damaged: of {stop} samples {start + len(waveform)} are decoded"
            )
        return audio.is_silent(waveform)

    silent = [is_silent(part) for part in (everything if thorough else edges)]
    return info, all(silent) and (thorough or all(map(is_silent, everything)))


def chunks(num_samples: int, sample_rate: int) -> Iterator[tuple[int, int]]:
    """Iterate over bounds `[start, stop)` of consecutive chunks; the last one is shorter."""
    size = CHUNK_SECONDS * sample_rate
    for start in range(0, num_samples, size):
        yield start, min(num_samples, start + size)


def examine_tracks(
    root: str, names: list[str], min_seconds: float, thorough: bool, workers: int
) -> tuple[list[ExaminedTrack], list[LeftOut]]:
    """Examine files in parallel; return usable ones in the order of `names`, and the others."""
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
        info, silent = examine(os.path.join(root, name), thorough)
    except AudioError as error:
        return LeftOut(name, error.reason)
    seconds = info.num_samples / info.sample_rate
    if info.num_samples == 0 or seconds < min_seconds:
        return LeftOut(name, f"too short: {seconds:.3f} s, at least {min_seconds:g} s are needed")
    return ExaminedTrack(name, info.length_at(), info.sample_rate, silent)
