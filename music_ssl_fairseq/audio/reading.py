"""Read files: with libsndfile where it reads well, with PyAV elsewhere (see `headers`)."""

import os
import stat
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from math import gcd

import numpy as np

from music_ssl_fairseq.audio import libsndfile, pyav, tar_members
from music_ssl_fairseq.audio.headers import AudioHeader, read_header
from music_ssl_fairseq.audio.libsndfile import Libsndfile
from music_ssl_fairseq.audio.pyav import PyAVDecoder
from music_ssl_fairseq.audio.tar_members import Member, parse_member
from music_ssl_fairseq.audio.waveforms import refuse_bad_samples, resampled_part
from music_ssl_fairseq.errors import AudioError
from music_ssl_fairseq.frames import SAMPLE_RATE, resampled_length

MIN_RATE, MAX_RATE = 1_000, 768_000
"""Hz. A header with another rate is damaged, and resampling from it would cost gigabytes."""

_MAX_ODD_RATE = 400_000  # Hz, without common divisors with 16 kHz: a filter of 100 MB


@dataclass(frozen=True)
class AudioInfo:
    """Length of a file: `num_samples` per channel, at the file's own `sample_rate`."""

    num_samples: int
    sample_rate: int
    channels: int

    def length_at(self, sample_rate: int = SAMPLE_RATE) -> int:
        """Return the number of samples once resampled."""
        return resampled_length(self.num_samples, self.sample_rate, sample_rate)


def probe(path: str | os.PathLike) -> AudioInfo:
    """Return how much audio can be decoded: from a reliable header, or else measured.

    Raises AudioError if the file is missing, empty or not audio, or its header is wrong.
    """
    file = _existing(path)
    with _open(file) as source:
        if isinstance(source, PyAVDecoder):
            return _measured(file)
        return AudioInfo(source.num_samples, source.sample_rate, source.channels)


def read(
    path: str | os.PathLike,
    start: int = 0,
    num_samples: int | None = None,
    sample_rate: int = SAMPLE_RATE,
) -> np.ndarray:
    """Decode `num_samples` samples from `start` on (to the end if None), mono, at `sample_rate`.

    Only the part asked for is decoded, where the format allows it. The result, `[T]` float32, is
    shorter only where the file ends.

    Raises AudioError if the file is missing, not audio, over 20 ms shorter than its header says, or
    holds samples that no recording has: see `refuse_bad_samples`.
    """
    file = _existing(path)
    stop = None if num_samples is None else start + num_samples
    with _open(file) as source:
        try:
            waveform = _part(source, start, stop, sample_rate)
        except AudioError:
            if not isinstance(source, Libsndfile) or file.member is not None:
                raise
            if not _decodes_whole(file, source):
                raise
            with file.decoder() as decoder:
                waveform = _part(decoder, start, stop, sample_rate)
    refuse_bad_samples(file.name, waveform)
    return waveform


@dataclass(frozen=True)
class _File:
    """An existing file and its header."""

    name: str
    # Changes when another file takes the name, or the file itself changes
    identity: tuple[int, ...]
    header: AudioHeader = field(compare=False)
    member: Member | None = None  # the file's place, if it is within a shard

    def decoder(self):
        """Open the file with PyAV, as a context manager."""
        return pyav.opened(self.name, self.header, self.identity)


def _existing(path: str | os.PathLike) -> _File:
    name = os.fspath(path)
    member = parse_member(name)
    if member is not None:
        return _File(name, (), AudioHeader(soundfile=True), member)
    try:
        status = os.stat(name)
        if not stat.S_ISREG(status.st_mode):
            is_folder = stat.S_ISDIR(status.st_mode)
            raise AudioError(name, "a folder, no audio file" if is_folder else "not a regular file")
        if status.st_size == 0:
            raise AudioError(name, "the file is empty (0 bytes)")
        identity = status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns
        return _File(name, identity, read_header(name))
    except FileNotFoundError:
        cause = "; folders are separated by / here, not by \\" if "\\" in name else ""
        cause = "; download it first" if "://" in name else cause
        raise AudioError(name, f"no such file{cause}") from None
    except OSError as error:
        raise AudioError(name, error.strerror or str(error)) from None
    except AudioError:
        raise
    except ValueError as error:
        raise AudioError(name, f"not a name of a file ({error})") from None


_Opened = Libsndfile | PyAVDecoder


@contextmanager
def _open(file: _File) -> Iterator[_Opened]:
    with ExitStack() as stack:
        source = _choose(file, stack)
        rate = source.sample_rate
        odd = rate // gcd(rate, SAMPLE_RATE) > _MAX_ODD_RATE
        if odd or not MIN_RATE <= rate <= MAX_RATE:
            raise AudioError(
                file.name,
                f"its header is damaged: it states a sample rate of {rate} Hz "
                f"({MIN_RATE} to {MAX_RATE} are read, and above {_MAX_ODD_RATE} usual ones)",
            )
        yield source


def _choose(file: _File, stack: ExitStack) -> _Opened:
    """Open with the decoder that the header asks for, or with the other if that fails.

    Files in shards are for libsndfile alone.
    """
    member, pcm = file.member, file.header.pcm
    if pcm is not None:
        member = Member(file.name, pcm.offset, pcm.size)
    if member is not None:
        part = stack.enter_context(tar_members.opened(member))
        return stack.enter_context(libsndfile.opened(file.name, part, pcm))
    ways = [lambda: libsndfile.opened(file.name), file.decoder]
    if not file.header.soundfile:
        ways.reverse()
        if file.name.lower().endswith((".mp3", ".mp2")):
            ways.pop()  # it would print notes of libmpg123, and read no more than FFmpeg
    reasons = []
    for way in ways:
        try:
            return stack.enter_context(way())
        except AudioError as error:
            reasons.append(error.reason)
    raise AudioError(file.name, f"not readable as audio ({'; '.join(reasons)})")


@lru_cache(maxsize=256)
def _measured(file: _File) -> AudioInfo:
    """Return what PyAV decodes; cached, because some formats must be decoded whole for it."""
    with file.decoder() as decoder:
        return AudioInfo(decoder.measure(), decoder.sample_rate, decoder.channels)


def _decodes_whole(file: _File, stated: Libsndfile) -> bool:
    """Tell whether PyAV decodes all samples that the header states, where libsndfile does not.

    Counted without seeks: FFmpeg silently skips damaged frames of FLAC, but the times of later
    frames show it.
    """
    decoded = 0
    block = 60 * stated.sample_rate
    try:
        with file.decoder() as decoder:
            while len(part := decoder.read(decoded, decoded + block)):
                decoded += len(part)
            return (decoded, decoder.sample_rate) == (stated.num_samples, stated.sample_rate)
    except AudioError:
        return False


def _part(source: _Opened, start: int, stop: int | None, sample_rate: int) -> np.ndarray:
    """Read the samples `[start, stop)` at `sample_rate`, fewer where the file ends."""
    if stop is not None and stop <= start:
        return np.zeros(0, np.float32)
    if source.sample_rate == sample_rate:
        return source.read(start, stop)
    return resampled_part(source, start, stop, sample_rate)
