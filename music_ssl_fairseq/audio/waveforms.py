"""Judge, normalise and resample waveforms, and parts of files with the same polyphase filter."""

from functools import lru_cache
from math import ceil, gcd
from typing import TYPE_CHECKING

import numpy as np

from music_ssl_fairseq.errors import AudioError
from music_ssl_fairseq.frames import SAMPLE_RATE, resampled_length

if TYPE_CHECKING:
    from music_ssl_fairseq.audio.libsndfile import Libsndfile
    from music_ssl_fairseq.audio.pyav import PyAVDecoder


SILENCE = 1e-4
"""A waveform that stays within this much of one value is silent: -80 dB of full scale."""

MAX_SAMPLE = 1e10
"""Beyond 32-bit integers stored as floats; the square still fits float32."""


def refuse_bad_samples(name: str, waveform: np.ndarray) -> None:
    """Refuse NaN, infinite and absurdly large samples: one of them spoils a whole update."""
    if not len(waveform):
        return
    # max and min are NaN if any sample is.
    peak = max(waveform.max(), -waveform.min())
    if not np.isfinite(peak):
        raise AudioError(name, "holds NaN or infinite samples")
    if peak > MAX_SAMPLE:
        raise AudioError(name, f"holds samples as large as {peak:.3g}, where audio is within 1")


def is_silent(waveform: np.ndarray) -> bool:
    """Tell whether `[T]` is constant up to dither."""
    return not len(waveform) or float(waveform.max() - waveform.min()) <= 2 * SILENCE


def normalise(waveform: np.ndarray) -> np.ndarray:
    """Scale to zero mean and unit variance over the whole crop, as fairseq's `normalize: true`.

    Equals `torch.nn.functional.layer_norm(waveform, waveform.shape)`: biased variance and an
    epsilon of 1e-5, so that silence stays silent.
    """
    centred = waveform - waveform.mean(dtype=np.float64).astype(np.float32)
    variance = np.square(centred).mean(dtype=np.float64)
    return centred * np.float32(1.0 / np.sqrt(variance + 1e-5))


_ZERO_CROSSINGS = 16  # of the sinc, each side: 90 dB stop band with the window below
_KAISER_BETA = 9.0
_ROLLOFF = 0.945  # cut-off as a share of the lower Nyquist frequency


def resample(waveform: np.ndarray, rate: int, sample_rate: int = SAMPLE_RATE) -> np.ndarray:
    """Resample `[..., T]` float32 from `rate` to `sample_rate`, as `audio.read` resamples files."""
    import scipy.signal

    if rate == sample_rate:
        return waveform
    up, down = _ratio(rate, sample_rate)
    taps, half = _filter(up, down)
    length = resampled_length(waveform.shape[-1], rate, sample_rate)
    # Zeros let the filter run out after the last wanted sample.
    padded = np.pad(waveform, [(0, 0)] * (waveform.ndim - 1) + [(0, half // up + 1)])
    output = scipy.signal.upfirdn(taps, padded, up, down, axis=-1)
    return np.ascontiguousarray(output[..., half // down :][..., :length], np.float32)


def resampled_part(
    source: "Libsndfile | PyAVDecoder", start: int, stop: int | None, sample_rate: int
) -> np.ndarray:
    """Return the samples `[start, stop)` at `sample_rate`, from as much as the filter needs.

    The result, `[T]` float32, is shorter only where the file ends.
    """
    up, down = _ratio(source.sample_rate, sample_rate)
    _, half = _filter(up, down)
    # `down` input samples become `up` output samples. Reading begins after a whole number of such
    # blocks, for the filter's phase in the whole file, and early enough for the filter's length.
    blocks = max(0, start // up - ceil(half / up / down))
    end = None if stop is None else ceil(stop * down / up) + half // up + 1
    known = source.read(blocks * down, end)
    if source.num_samples is not None:
        length = resampled_length(source.num_samples, source.sample_rate, sample_rate)
        stop = length if stop is None else min(stop, length)
    assert stop is not None  # without one, all was read, and the length is known
    part = resample(known, source.sample_rate, sample_rate)
    return part[start - blocks * up : max(start, stop) - blocks * up]


def _ratio(rate: int, sample_rate: int) -> tuple[int, int]:
    common = gcd(sample_rate, rate)
    return sample_rate // common, rate // common


@lru_cache(maxsize=32)
def _filter(up: int, down: int) -> tuple[np.ndarray, int]:
    """Return a windowed sinc at `up` times the rate, and half its length, a multiple of `down`."""
    import scipy.signal

    half = ceil(_ZERO_CROSSINGS * max(up, down) / down) * down
    taps = scipy.signal.firwin(
        2 * half + 1, _ROLLOFF / max(up, down), window=("kaiser", _KAISER_BETA)
    )
    return (taps * up).astype(np.float32), half
