"""The only place that opens audio: seek, mix to mono, resample, normalise.

`waveform` here is always `[T]` float32, mono, nominally in [-1, 1]. Positions and lengths are
counted in samples *at the rate asked for*, whatever the file's own rate: a crop of a 44.1 kHz file
is, to rounding, the same samples as that part of the whole file resampled.
"""

import os
from dataclasses import dataclass
from functools import lru_cache
from math import ceil, gcd

import numpy as np
import soundfile

from music_ssl_fairseq.errors import AudioError
from music_ssl_fairseq.frames import SAMPLE_RATE, resampled_length

EXTENSIONS = (".wav", ".flac", ".ogg", ".opus", ".mp3")

_ZERO_CROSSINGS = 16  # of the sinc, each side: 90 dB stop band with the window below
_KAISER_BETA = 9.0
_ROLLOFF = 0.945  # cut-off as a share of the lower Nyquist frequency

_LOST_TAIL = 0.02  # seconds at most by which encoders (Opus) state more than can be decoded

_LARGEST_SAMPLE = 1e10  # beyond 32-bit integers stored as floats; its square still fits float32


@dataclass(frozen=True)
class AudioInfo:
    """What a file's header says. `num_samples` is per channel, at the file's own `sample_rate`."""

    num_samples: int
    sample_rate: int
    channels: int

    def length_at(self, sample_rate: int = SAMPLE_RATE) -> int:
        """Samples the file has once resampled."""
        return resampled_length(self.num_samples, self.sample_rate, sample_rate)


def _open(path: str | os.PathLike) -> soundfile.SoundFile:
    # libsndfile takes bytes, so names that are not UTF-8 open as well.
    name = os.fspath(path)
    try:
        if os.path.getsize(name) == 0:
            raise AudioError(name, "the file is empty (0 bytes)")
        return soundfile.SoundFile(os.fsencode(name))
    except FileNotFoundError:
        raise AudioError(name, "no such file") from None
    except OSError as error:
        raise AudioError(name, error.strerror or str(error)) from None
    except soundfile.LibsndfileError as error:
        raise AudioError(name, f"not readable as audio ({error.error_string})") from None


def probe(path: str | os.PathLike) -> AudioInfo:
    """Read the header alone.

    Raises:
        AudioError: if the file is missing, empty or not audio.
    """
    with _open(path) as file:
        return AudioInfo(file.frames, file.samplerate, file.channels)


def read(
    path: str | os.PathLike,
    start: int = 0,
    num_samples: int | None = None,
    sample_rate: int = SAMPLE_RATE,
) -> np.ndarray:
    """Decode `num_samples` samples from `start` on (to the end if None), mono, at `sample_rate`.

    Only the part asked for is decoded. Fewer samples come back only where the file ends.

    Returns:
        `[T]` float32.

    Raises:
        AudioError: if the file is missing, not audio, over 20 ms shorter than its header says,
            or holds samples that no recording has: see `_refuse_bad_samples`.
    """
    name = os.fspath(path)
    with _open(name) as file:
        info = AudioInfo(file.frames, file.samplerate, file.channels)
        length = info.length_at(sample_rate)
        stop = length if num_samples is None else min(length, start + num_samples)
        if stop <= start:
            return np.zeros(0, np.float32)
        if info.sample_rate == sample_rate:
            waveform = _decode(file, name, start, stop)
        else:
            waveform = _resampled(file, name, start, stop, sample_rate)
    _refuse_bad_samples(name, waveform)
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


def _decode(file: soundfile.SoundFile, name: str, start: int, stop: int) -> np.ndarray:
    """Samples [start, stop) at the file's own rate, mono."""
    try:
        # A seek costs a decoder reset in the compressed formats, even to where it already is.
        if start:
            file.seek(start)
        block = file.read(stop - start, dtype="float32", always_2d=True)
    except soundfile.LibsndfileError as error:
        raise AudioError(name, f"damaged or truncated ({error.error_string})") from None
    if len(block) < stop - start:
        end = start + len(block)
        if file.frames - end > _LOST_TAIL * file.samplerate:
            raise AudioError(
                name, f"truncated: its header says {file.frames} samples, but it ends at {end}"
            )
        block = np.pad(block, ((0, stop - end), (0, 0)))
    return block[:, 0] if block.shape[1] == 1 else block.mean(axis=1)


@lru_cache(maxsize=32)
def _resampling_filter(up: int, down: int) -> tuple[np.ndarray, int]:
    """Windowed sinc at `up` times the input rate, and half its length (a multiple of `down`)."""
    import scipy.signal

    half = ceil(_ZERO_CROSSINGS * max(up, down) / down) * down
    taps = scipy.signal.firwin(
        2 * half + 1, _ROLLOFF / max(up, down), window=("kaiser", _KAISER_BETA)
    )
    return (taps * up).astype(np.float32), half


def _resampled(
    file: soundfile.SoundFile, name: str, start: int, stop: int, sample_rate: int
) -> np.ndarray:
    """Samples [start, stop) at `sample_rate`: reads that part, and as much as the filter needs."""
    import scipy.signal

    common = gcd(sample_rate, file.samplerate)
    up, down = sample_rate // common, file.samplerate // common
    taps, half = _resampling_filter(up, down)
    # Every `up` output samples meet an input sample. Start on such a meeting point, so that the
    # filter's phase is that of the whole file, and early enough for its full length.
    margin = ceil(half / up / down)
    block = start // up - margin
    first = block * down
    last = ceil(stop * down / up) + half // up + 1
    known = _decode(file, name, max(0, first), min(last, file.frames))
    padded = np.concatenate(
        [
            np.zeros(max(0, -first), np.float32),
            known,
            np.zeros(max(0, last - file.frames), np.float32),
        ]
    )
    output = scipy.signal.upfirdn(taps, padded, up, down)
    offset = half // down + start - block * up
    return np.ascontiguousarray(output[offset : offset + stop - start])
