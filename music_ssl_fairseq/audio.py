"""The only place that opens audio: seek, mix to mono, resample, normalise.

`waveform` here is always `[T]` float32, mono, nominally in [-1, 1]. Positions and lengths are
counted in samples *at the rate asked for*, whatever the file's own rate: a crop of a 44.1 kHz file
is, to rounding, the same samples as that part of the whole file resampled.

libsndfile (soundfile) reads what it reads well; PyAV reads the rest (see `headers`, `decoding`).
"""

import os
import stat
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import lru_cache
from math import ceil, gcd

import numpy as np
import soundfile

from music_ssl_fairseq import decoding
from music_ssl_fairseq.decoding import Decoder
from music_ssl_fairseq.errors import AudioError
from music_ssl_fairseq.frames import SAMPLE_RATE, resampled_length
from music_ssl_fairseq.headers import Header, read_header
from music_ssl_fairseq.pcm import Pcm

EXTENSIONS = (
    *(".wav", ".flac", ".ogg", ".opus", ".mp3", ".m4a", ".aac", ".aif", ".aiff", ".wma", ".ape"),
    *(".wv", ".caf", ".mka", ".webm", ".aifc", ".au", ".m4b", ".mp2", ".oga", ".w64", ".wave"),
    *(".weba", ".tta", ".mpc", ".ac3", ".dsf", ".snd", ".rf64"),
)
"""Of files that look like audio: all that finds, lists or counts audio goes by these."""

MIN_RATE, MAX_RATE = 1_000, 768_000
"""Hz. A header with another rate is damaged, and resampling from it would cost gigabytes."""

_ODDEST_RATE = 400_000  # Hz, without common divisors with 16 kHz: a filter of 100 MB

_ZERO_CROSSINGS = 16  # of the sinc, each side: 90 dB stop band with the window below
_KAISER_BETA = 9.0
_ROLLOFF = 0.945  # cut-off as a share of the lower Nyquist frequency

# Of libsndfile. In others a sample follows from all before it, or there is no seek.
_SEEKING = (
    "PCM_",
    "FLOAT",
    "DOUBLE",
    "ULAW",
    "ALAW",
    "IMA_",
    "MS_",
    "ALAC",
    "VORBIS",
    "OPUS",
    "MPEG",
)

_LOST_TAIL = 0.02  # seconds at most by which encoders state more than can be decoded
_PASSED_OVER = 2**20  # samples, decoded at a time
_LONGEST = 2**40  # samples; libsndfile gives 2**63 - 1 for a FLAC stream that states no length
SILENCE = 1e-4
"""A waveform that stays within this much of one value is silent: -80 dB of full scale."""

_LARGEST_SAMPLE = 1e10  # beyond 32-bit integers stored as floats; its square still fits float32


@dataclass(frozen=True)
class AudioInfo:
    """How much audio a file has. `num_samples` is per channel, at the file's own `sample_rate`."""

    num_samples: int
    sample_rate: int
    channels: int

    def length_at(self, sample_rate: int = SAMPLE_RATE) -> int:
        """Samples the file has once resampled."""
        return resampled_length(self.num_samples, self.sample_rate, sample_rate)


def probe(path: str | os.PathLike) -> AudioInfo:
    """How much audio can be decoded: what a reliable header says, or else measured.

    Raises:
        AudioError: if the file is missing, empty or not audio, or its header is wrong.
    """
    file = _File(path)
    with _open(file) as source:
        if isinstance(source, Decoder):
            return _measured(file)
        return AudioInfo(source.num_samples, source.sample_rate, source.channels)


def read(
    path: str | os.PathLike,
    start: int = 0,
    num_samples: int | None = None,
    sample_rate: int = SAMPLE_RATE,
) -> np.ndarray:
    """Decode `num_samples` samples from `start` on (to the end if None), mono, at `sample_rate`.

    Only the part asked for is decoded, where the format allows it. Fewer samples come back only
    where the file ends.

    Returns:
        `[T]` float32.

    Raises:
        AudioError: if the file is missing, not audio, over 20 ms shorter than its header says,
            or holds samples that no recording has: see `_refuse_bad_samples`.
    """
    file = _File(path)
    stop = None if num_samples is None else start + num_samples
    with _open(file) as source:
        try:
            waveform = _part(source, start, stop, sample_rate)
        except AudioError:
            if not isinstance(source, _Soundfile) or not _decodes_whole(file, source):
                raise
            with file.decoder() as decoder:
                waveform = _part(decoder, start, stop, sample_rate)
    _refuse_bad_samples(file.name, waveform)
    return waveform


def _refuse_bad_samples(name: str, waveform: np.ndarray) -> None:
    """Refuse NaN, infinite and absurdly large samples: one of them spoils a whole update."""
    if not len(waveform):
        return
    # max and min are NaN if any sample is.
    peak = max(waveform.max(), -waveform.min())
    if not np.isfinite(peak):
        raise AudioError(name, "holds NaN or infinite samples")
    if peak > _LARGEST_SAMPLE:
        raise AudioError(name, f"holds samples as large as {peak:.3g}, where audio is within 1")


def is_silent(waveform: np.ndarray) -> bool:
    """Whether nothing is to be heard in `[T]`: it does not move, or by no more than dither does."""
    return not len(waveform) or float(waveform.max() - waveform.min()) <= 2 * SILENCE


def normalise(waveform: np.ndarray) -> np.ndarray:
    """Zero mean and unit variance over the whole crop, as fairseq's `normalize: true`.

    The same as `torch.nn.functional.layer_norm(waveform, waveform.shape)`: biased variance and an
    epsilon of 1e-5, so that silence stays silent.
    """
    centred = waveform - waveform.mean(dtype=np.float64).astype(np.float32)
    variance = np.square(centred).mean(dtype=np.float64)
    return centred * np.float32(1.0 / np.sqrt(variance + 1e-5))


def resample(waveform: np.ndarray, rate: int, sample_rate: int = SAMPLE_RATE) -> np.ndarray:
    """`[..., T]` float32 at `rate` to `sample_rate`, with the filter that `read` has for files."""
    import scipy.signal

    if rate == sample_rate:
        return waveform
    common = gcd(sample_rate, rate)
    up, down = sample_rate // common, rate // common
    taps, half = _resampling_filter(up, down)
    length = resampled_length(waveform.shape[-1], rate, sample_rate)
    # Zeros, so that the filter runs out after the last sample that is wanted.
    padded = np.pad(waveform, [(0, 0)] * (waveform.ndim - 1) + [(0, half // up + 1)])
    output = scipy.signal.upfirdn(taps, padded, up, down, axis=-1)
    return np.ascontiguousarray(output[..., half // down :][..., :length], np.float32)


class _File:
    """A file that is there, and what its first bytes say.

    Attributes:
        identity: tells it from another of its name, and from itself once it has changed.
    """

    def __init__(self, path: str | os.PathLike):
        self.name = os.fspath(path)
        try:
            status = os.stat(self.name)
            if not stat.S_ISREG(status.st_mode):
                raise AudioError(self.name, "not a regular file")
            if status.st_size == 0:
                raise AudioError(self.name, "the file is empty (0 bytes)")
            self.header: Header = read_header(self.name)
        except FileNotFoundError:
            raise AudioError(self.name, "no such file") from None
        except OSError as error:
            raise AudioError(self.name, error.strerror or str(error)) from None
        except ValueError as error:
            if isinstance(error, AudioError):
                raise
            raise AudioError(self.name, f"not a name of a file ({error})") from None
        self.identity = (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)

    def decoder(self):
        """PyAV's, as a context manager."""
        return decoding.opened(self.name, self.header, self.identity)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _File) and self._key == other._key

    def __hash__(self) -> int:
        return hash(self._key)

    @property
    def _key(self) -> tuple:
        return self.name, self.identity


class _Soundfile:
    """libsndfile, with the methods of `Decoder`; a context manager."""

    def __init__(self, name: str):
        self._name = name
        # libsndfile takes bytes, so names that are not UTF-8 open as well.
        self._file = soundfile.SoundFile(os.fsencode(name))
        self.num_samples: int = self._file.frames
        self.sample_rate: int = self._file.samplerate
        self.channels: int = self._file.channels
        self.format: str = self._file.format

    def __enter__(self) -> "_Soundfile":
        return self

    def __exit__(self, *error: object) -> None:
        self._file.close()

    def read(self, start: int, stop: int | None) -> np.ndarray:
        """Samples `[start, stop)` at the file's own rate, mono."""
        stop = self.num_samples if stop is None else min(stop, self.num_samples)
        if stop <= start:
            return np.zeros(0, np.float32)
        try:
            # A seek costs a decoder reset in the compressed formats, even to where it already is.
            if start and self._file.subtype.startswith(_SEEKING):
                self._file.seek(start)
            elif start:
                self._pass_over(start)
            block = self._file.read(stop - start, dtype="float32", always_2d=True)
        except soundfile.LibsndfileError as error:
            raise AudioError(self._name, f"damaged or truncated ({error.error_string})") from None
        if len(block) < stop - start:
            end = start + len(block)
            if self.num_samples - end > _LOST_TAIL * self.sample_rate:
                raise AudioError(
                    self._name,
                    f"truncated: its header says {self.num_samples} samples, but it ends at {end}",
                )
            block = np.pad(block, ((0, stop - end), (0, 0)))
        return block[:, 0] if block.shape[1] == 1 else block.mean(axis=1)

    def _pass_over(self, num_samples: int) -> None:
        """Decode that many samples from the start: `read` comes once for each opened file."""
        while num_samples > 0 and len(self._file.read(min(num_samples, _PASSED_OVER))):
            num_samples -= _PASSED_OVER


Source = _Soundfile | Decoder | Pcm


@contextmanager
def _open(file: _File) -> Iterator[Source]:
    with ExitStack() as stack:
        source = _choose(file, stack)
        rate = source.sample_rate
        odd = rate // gcd(rate, SAMPLE_RATE) > _ODDEST_RATE
        if odd or not MIN_RATE <= rate <= MAX_RATE:
            raise AudioError(
                file.name,
                f"its header is damaged: it states a sample rate of {rate} Hz "
                f"({MIN_RATE} to {MAX_RATE} are read, and above {_ODDEST_RATE} usual ones)",
            )
        yield source


def _choose(file: _File, stack: ExitStack) -> Source:
    """The decoder that the header asks for, or the other one if that cannot open the file."""
    if file.header.pcm is not None:
        return file.header.pcm
    ways = [_by_soundfile, _by_pyav]
    if not file.header.soundfile:
        ways.reverse()
    try:
        return stack.enter_context(ways[0](file))
    except AudioError as error:
        first = error.reason
    try:
        return stack.enter_context(ways[1](file))
    except AudioError as error:
        raise AudioError(file.name, f"not readable as audio ({first}; {error.reason})") from None


def _by_pyav(file: _File):
    return file.decoder()


def _by_soundfile(file: _File) -> _Soundfile:
    try:
        opened = _Soundfile(file.name)
    except soundfile.LibsndfileError as error:
        raise AudioError(file.name, f"libsndfile: {error.error_string}") from None
    if opened.format == "RAW":  # anything at all whose name ends in .au, .snd, .vox or .gsm
        with opened:
            raise AudioError(file.name, "libsndfile: its first bytes are of no known format")
    if not 0 <= opened.num_samples <= _LONGEST:
        with opened:
            raise AudioError(file.name, "libsndfile: it states no length")
    return opened


@lru_cache(maxsize=256)
def _measured(file: _File) -> AudioInfo:
    """What PyAV decodes. Remembered, because some formats have to be decoded for it."""
    with file.decoder() as decoder:
        return AudioInfo(decoder.measure(), decoder.sample_rate, decoder.channels)


def _decodes_whole(file: _File, stated: _Soundfile) -> bool:
    """Whether PyAV decodes all that the header states, where libsndfile does not.

    To the sample, and counted in one go: FFmpeg passes over damaged frames of FLAC without a word,
    but not in the times of those behind them.
    """
    decoded, block = 0, 60 * stated.sample_rate
    try:
        with file.decoder() as decoder:
            while len(part := decoder.read(decoded, decoded + block)):
                decoded += len(part)
            return (decoded, decoder.sample_rate) == (stated.num_samples, stated.sample_rate)
    except AudioError:
        return False


@lru_cache(maxsize=32)
def _resampling_filter(up: int, down: int) -> tuple[np.ndarray, int]:
    """Windowed sinc at `up` times the input rate, and half its length (a multiple of `down`)."""
    import scipy.signal

    half = ceil(_ZERO_CROSSINGS * max(up, down) / down) * down
    taps = scipy.signal.firwin(
        2 * half + 1, _ROLLOFF / max(up, down), window=("kaiser", _KAISER_BETA)
    )
    return (taps * up).astype(np.float32), half


def _part(source: Source, start: int, stop: int | None, sample_rate: int) -> np.ndarray:
    """Samples `[start, stop)` at `sample_rate`, of those that there are."""
    if stop is not None and stop <= start:
        return np.zeros(0, np.float32)
    if source.sample_rate == sample_rate:
        return source.read(start, stop)
    return _resampled(source, start, stop, sample_rate)


def _resampled(source: Source, start: int, stop: int | None, sample_rate: int) -> np.ndarray:
    """As `_part`, from another rate: reads that part, and as much as the filter needs."""
    import scipy.signal

    common = gcd(sample_rate, source.sample_rate)
    up, down = sample_rate // common, source.sample_rate // common
    taps, half = _resampling_filter(up, down)

    def end_of_input(stop: int) -> int:
        return ceil(stop * down / up) + half // up + 1

    # Every `up` output samples meet an input sample. Start on such a meeting point, so that the
    # filter's phase is that of the whole file, and early enough for its full length.
    block = start // up - ceil(half / up / down)
    first = block * down
    known = source.read(max(0, first), None if stop is None else end_of_input(stop))
    if source.num_samples is not None:
        length = resampled_length(source.num_samples, source.sample_rate, sample_rate)
        stop = length if stop is None else min(stop, length)
    assert stop is not None  # without one, all was read, and the length is known
    if stop <= start:
        return np.zeros(0, np.float32)
    before = max(0, -first)
    after = end_of_input(stop) - max(0, first) - len(known)
    padded = np.pad(known, (before, max(0, after)))
    output = scipy.signal.upfirdn(taps, padded, up, down)
    offset = half // down + start - block * up
    return np.ascontiguousarray(output[offset : offset + stop - start])
