"""Constant-Q transform: one band per semitone, all of the same relative width.

A band's filter is a Hann window of Q periods of its frequency (Brown, 1991; lengths as in librosa).
All filters are applied in the spectrum of ten seconds at once: a band there is narrow, and its
output at one value every 10 ms is the inverse transform of its few bins, folded. On one core that
does 2,900 seconds of audio per second, and librosa, which halves the rate octave by octave, 350.
"""

from functools import lru_cache
from math import ceil, floor

import numpy as np
import scipy.fft

from music_ssl_fairseq.features.framewise import Framewise
from music_ssl_fairseq.features.kaldi import GRID
from music_ssl_fairseq.frames import SAMPLE_RATE

BINS_PER_OCTAVE = 12
NUM_OCTAVES = 7
LOWEST = 440.0 * 2 ** (-45 / 12)  # Hz; C1
NUM_BINS = BINS_PER_OCTAVE * NUM_OCTAVES

_FLOOR = np.float32(1e-4)  # of a magnitude: 80 dB below a sine of full scale
_MIN_AMPLITUDE = np.float32(1e-3)  # that Chroma scales to 1: 60 dB below a full-scale sine
_SPREAD = 2 ** (2 / BINS_PER_OCTAVE)
_Q = (_SPREAD + 1) / (_SPREAD - 1)
_LONGEST = _Q * SAMPLE_RATE / LOWEST  # samples
_REACH = ceil((_LONGEST - GRID.window) / 2 / GRID.hop)  # frames
_BLOCK_FRAMES = 1024  # frames of a transform; frames near its ends are not used
_HALF_BAND = 16.0  # half of a filter's pass band, in 1 / its length: beyond are only side lobes


class Cqt(Framewise):
    """Level in 84 bands a semitone apart, C1 to B7, every 10 ms: dB below a full-scale sine.

    Values from -80 (and nothing below) to about 0. A frame's centre is that of its 25 ms, but low
    bands depend on half a second.
    """

    grid = GRID
    dimension = NUM_BINS
    context = _REACH

    def features(self, waveform: np.ndarray) -> np.ndarray:
        """Map `[T]` float32, nominally in [-1, 1], 16 kHz, to `[frames, 84]` float32."""
        levels = magnitudes(waveform)
        np.maximum(levels, _FLOOR, out=levels)
        return np.multiply(np.log10(levels, out=levels), np.float32(20), out=levels)


def magnitudes(waveform: np.ndarray) -> np.ndarray:
    """Compute the amplitude of each band: that of a sine which has the band's frequency.

    From `[T]` float32 at 16 kHz to `[GRID.num_frames(T), NUM_BINS]` float32. Before its start and
    after its last whole frame the audio counts as silent.
    """
    num_frames = GRID.num_frames(len(waveform))
    output = np.empty((num_frames, NUM_BINS), np.float32)
    # Of a block, `_REACH` frames at each end are discarded: their filters reach beyond the block.
    step = _BLOCK_FRAMES - 2 * _REACH
    # Sample 0 of a block is the centre of its frame 0.
    before = _REACH * GRID.hop - GRID.window // 2
    blocks = ceil(num_frames / step)
    padded = np.zeros((blocks * step + 2 * _REACH) * GRID.hop, np.float32)
    covered = waveform[: GRID.num_samples(num_frames)]
    padded[before : before + len(covered)] = covered
    for start in range(0, num_frames, step):
        samples = padded[start * GRID.hop :][: _BLOCK_FRAMES * GRID.hop]
        bands = np.abs(_filtered(samples)).T
        stop = min(num_frames, start + step)
        output[start:stop] = bands[_REACH : _REACH + stop - start]
    return output


def _filtered(samples: np.ndarray) -> np.ndarray:
    """Map a block's samples to `[NUM_BINS, frames]` complex64, one value per hop."""
    spectrum = scipy.fft.rfft(samples)
    folded = np.zeros((NUM_BINS, _BLOCK_FRAMES), np.complex64)
    for band, (first, response) in enumerate(_responses()):
        # Taking one value per hop makes all bins alike that are a block's frames apart. The
        # band's first bin becomes number 0: that turns the output's phase, which is not used.
        inside = np.zeros(ceil(len(response) / _BLOCK_FRAMES) * _BLOCK_FRAMES, np.complex64)
        np.multiply(spectrum[first : first + len(response)], response, out=inside[: len(response)])
        inside.reshape(-1, _BLOCK_FRAMES).sum(axis=0, out=folded[band])
    return scipy.fft.ifft(folded, axis=1, overwrite_x=True)


@lru_cache
def _responses() -> list[tuple[int, np.ndarray]]:
    """Return each band's first bin in a block's spectrum, and its filter from there, float32."""
    size = _BLOCK_FRAMES * GRID.hop
    responses = []
    for band in range(NUM_BINS):
        frequency = LOWEST * 2 ** (band / BINS_PER_OCTAVE)
        length = _Q * SAMPLE_RATE / frequency
        centre, half = frequency * size / SAMPLE_RATE, _HALF_BAND * size / length
        first, last = max(0, ceil(centre - half)), min(size // 2, floor(centre + half))
        offsets = 2 * np.pi * (np.arange(first, last + 1) - centre) / size
        # Twice, for the half of a sine's amplitude at the negative frequency; over the hop, because
        # the inverse transform divides by its own length only.
        gain = 2.0 / GRID.hop
        responses.append((first, (gain * _hann_response(length, offsets)).astype(np.float32)))
    return responses


def _hann_response(length: float, angles: np.ndarray) -> np.ndarray:
    """Compute the spectrum of a Hann window about sample 0 whose samples sum to 1.

    The window's `length` is in samples, whole or not; `angles` are in radians per sample.
    """
    reach = floor(length / 2)
    step = 2 * np.pi / length

    def rectangle(angle):
        half = np.where(np.abs(angle) < 1e-12, 1e-12, angle) / 2
        return np.sin((2 * reach + 1) * half) / np.sin(half)

    def window(angle):
        return rectangle(angle) / 2 + (rectangle(angle - step) + rectangle(angle + step)) / 4

    return window(angles) / window(np.zeros(1))


class Chroma(Framewise):
    """Amplitudes of `Cqt`'s bands summed over its octaves, C first, the strongest scaled to 1.

    As `librosa.feature.chroma_cqt` makes of a constant-Q transform. Frames whose strongest class is
    below -60 dB keep that quietness, so that silence is 0 and hiss no chord.
    """

    grid = GRID
    dimension = BINS_PER_OCTAVE
    context = _REACH

    def features(self, waveform: np.ndarray) -> np.ndarray:
        """Map `[T]` float32, nominally in [-1, 1], 16 kHz, to `[frames, 12]` float32 in [0, 1]."""
        bands = magnitudes(waveform)
        classes = bands.reshape(-1, NUM_OCTAVES, BINS_PER_OCTAVE).sum(axis=1)
        return classes / np.maximum(classes.max(axis=1, keepdims=True), _MIN_AMPLITUDE)
