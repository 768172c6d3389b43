"""Write 16 kHz mono FLAC copies: nearly as fast to read as WAV, in half the space."""

import errno
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import partial
from io import BytesIO
from pathlib import Path

import numpy as np
import soundfile

from manifests_tools.examine import ExaminedTrack, chunks, parallel_map
from music_ssl_fairseq import audio
from music_ssl_fairseq.data.left_out import LeftOut
from music_ssl_fairseq.errors import AudioError, InputError
from music_ssl_fairseq.frames import SAMPLE_RATE
from music_ssl_fairseq.runtime.files import atomic_path, remove_temporary

ABANDONED_SECONDS = 600.0
"""Without a change for so long, an unfinished copy is a killed run's; another run may be going."""

_RATE_STEP = 50  # Hz: rates with a common divisor with 16 kHz need short filters


def target_names(names: list[str]) -> dict[str, str]:
    """Return the name of each source's copy: suffix `.flac`, in the same tree.

    Sources that would share a copy (`a.wav` and `a.mp3`) keep their own suffix before it
    (`a.wav.flac`).
    """
    targets = {name: os.path.splitext(name)[0] + ".flac" for name in names}
    longer = {name: f"{name}.flac" for name in names}
    clashing = names
    while clashing:  # again, because a longer name may be that of another copy
        counts = Counter(targets.values())
        clashing = [n for n in names if counts[targets[n]] > 1 and targets[n] != longer[n]]
        targets |= {name: longer[name] for name in clashing}
    return targets


def convert_tracks(
    root: str, folder: str, tracks: list[ExaminedTrack], workers: int
) -> tuple[dict[str, str], list[LeftOut]]:
    """Write a copy of each track below `folder`, in parallel; keep existing copies.

    Return source name -> name of its copy, and the damaged tracks.
    """
    targets = target_names([track.name for track in tracks])
    jobs = [(track, targets[track.name]) for track in tracks]
    function = partial(_convert_track, root=root, folder=folder)
    results = parallel_map(function, jobs, workers, "writing flac", chunk=1)
    left_out = [result for result in results if result is not None]
    for place in {Path(folder, name).parent for name in targets.values()}:
        remove_temporary(place, ABANDONED_SECONDS)
    for item in left_out:
        del targets[item.name]
    return targets, left_out


def _convert_track(job: tuple[ExaminedTrack, str], root: str, folder: str) -> LeftOut | None:
    track, name = job
    source, target = os.path.join(root, track.name), os.path.join(folder, name)
    try:
        _write_copy(source, target, track.num_samples)
    except AudioError as error:
        return LeftOut(track.name, error.reason)
    return None


def change_speeds(
    folder: str, names: list[str], speeds: Sequence[float], workers: int
) -> list[tuple[str, int]]:
    """Write each copy below `folder` at other speeds, pitch and tempo together, in parallel.

    Return the manifest lines of these: name relative to `folder`, and number of samples. They are
    in hidden folders, so that commands that search `folder` find each song once. A speed is kept
    to 0.4 %, so that the filters are short.

    Raises InputError if one cannot be written.
    """
    jobs = [(name, f".speed-{speed:g}/{name}", speed) for speed in speeds for name in names]
    function = partial(_change_speed, folder=folder)
    lines = list(parallel_map(function, jobs, workers, "changing speed", chunk=1))
    for place in {Path(folder, target).parent for _, target, _ in jobs}:
        remove_temporary(place, ABANDONED_SECONDS)
    return lines


def rate_at(speed: float) -> int:
    """Return the rate at which a file is read to be played at a speed."""
    return round(SAMPLE_RATE / speed / _RATE_STEP) * _RATE_STEP


def _change_speed(job: tuple[str, str, float], folder: str) -> tuple[str, int]:
    name, target, speed = job
    source, path = os.path.join(folder, name), os.path.join(folder, target)
    rate = rate_at(speed)
    num_samples = audio.probe(source).length_at(rate)
    _write_copy(source, path, num_samples, rate)
    return target, num_samples


def _write_copy(source: str, target: str, num_samples: int, rate: int = SAMPLE_RATE) -> None:
    """Write `num_samples` of `source`, read at `rate`, as 16 kHz; keep a finished copy.

    Raises:
        AudioError: if the source cannot be read, or has too long a name.
        InputError: if the copy cannot be written.
    """
    edges = chunks(num_samples, SAMPLE_RATE)
    try:
        if not is_copy(target, num_samples, source, rate):
            parts = (audio.read(source, start, stop - start, rate) for start, stop in edges)
            write_flac(target, parts)
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:
            reason = "its name is too long for a copy with the suffix .flac"
            raise AudioError(source, reason) from None
        raise InputError(f"{target}: cannot be written ({error.strerror})") from None


def is_copy(path: str, num_samples: int, source: str, rate: int = SAMPLE_RATE) -> bool:
    """Tell whether `path` is a finished copy of `source`: 16 kHz mono, whole, and no older.

    The source was read at `rate`: 16 kHz, unless the speed was changed.
    """
    try:
        info = audio.probe(path)
        if (info.num_samples, info.sample_rate, info.channels) != (num_samples, SAMPLE_RATE, 1):
            return False
        last = max(0, num_samples - SAMPLE_RATE)
        whole = len(audio.read(path, last, num_samples - last)) == num_samples - last
    except AudioError:
        return False
    return whole and follows(path, os.stat(path).st_mtime_ns, source, num_samples, rate)


def follows(copy: str, made: int, source: str, num_samples: int, rate: int = SAMPLE_RATE) -> bool:
    """Tell whether a copy that was made at a time, in ns, is of what its source holds now."""
    status = os.stat(source)
    if made < status.st_mtime_ns:
        return False
    if made >= status.st_ctime_ns:
        return True
    # A file that is moved or unpacked here keeps an older time: compare a second of its middle.
    middle = max(0, num_samples - SAMPLE_RATE) // 2, SAMPLE_RATE
    written, original = audio.read(copy, *middle), audio.read(source, *middle, rate)
    return np.array_equal(_rounded(written), _rounded(original))


def _rounded(waveform: np.ndarray) -> np.ndarray:
    """Return 16-bit samples of a waveform."""
    return np.clip(np.rint(waveform * 32768), -32768, 32767).astype(np.int16)


def write_flac(path: str, waveforms: Iterator[np.ndarray]) -> None:
    """Write consecutive waveforms (`[T]` float32 at 16 kHz) as 16-bit FLAC, atomically.

    Values are rounded to 1/32768 and clipped to [-1, 1): 16-bit audio of 16 kHz keeps its values,
    and a peak beyond full scale (MP3, resampling) does not wrap.
    """
    with atomic_path(path) as temporary:
        encode_flac(os.fsencode(temporary), waveforms)


def encode_flac(file: bytes | BytesIO, waveforms: Iterator[np.ndarray]) -> None:
    """Write as `write_flac` does to a path, not atomically, or to memory.

    Raises OSError if it cannot be written.
    """
    try:
        with soundfile.SoundFile(file, "w", SAMPLE_RATE, 1, "PCM_16", format="FLAC") as flac:
            for waveform in waveforms:
                flac.write(_rounded(waveform))
    except (soundfile.LibsndfileError, AssertionError) as error:
        # On a full disk soundfile's assertion fails that all frames were written.
        raise OSError(errno.EIO, f"is the disk full? {error}".strip()) from None
