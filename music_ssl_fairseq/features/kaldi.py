"""Compute Kaldi's mel energies, the basis of MFCC and log-mel spectrograms.

The same values as `torchaudio.compliance.kaldi` to rounding, with its defaults (Povey's window of
25 ms every 10 ms, no dither). Computed here in numpy, because torchaudio builds its mel bank at
every call, passes over the frames seven times, and costs each worker an import of torch: on one
core, MFCC of 3,900 seconds of audio per second against 730.
"""

from collections.abc import Iterator
from functools import lru_cache

import numpy as np
import scipy.fft

from music_ssl_fairseq.features.framewise import Framewise
from music_ssl_fairseq.frames import SAMPLE_RATE, FrameGrid

GRID = FrameGrid(window=400, hop=160)
"""25 ms every 10 ms. All features of audio have it, so that they can be joined."""

FFT_SIZE = 512
PREEMPHASIS = np.float32(0.97)
_LOW_FREQUENCY = 20.0  # Hz; the highest band ends at the Nyquist frequency
ENERGY_FLOOR = np.finfo(np.float32).eps
_BLOCK_FRAMES = 256  # whose spectra stay in a core's second-level cache


def log_mel_blocks(waveform: np.ndarray, num_bins: int) -> Iterator[tuple[slice, np.ndarray]]:
    """Yield logarithms of mel energies, some hundred frames at a time.

    Args:
        waveform: `[T]` float32, nominally in [-1, 1], 16 kHz.
        num_bins: triangular bands from 20 Hz to the Nyquist frequency, of equal width in mel.

    Yields:
        Which frames, and `[frames, num_bins]` float32, until all `GRID.num_frames(T)` are done.
    """
    num_frames = GRID.num_frames(len(waveform))
    bank = mel_bank(num_bins)
    for start in range(0, num_frames, _BLOCK_FRAMES):
        stop = min(num_frames, start + _BLOCK_FRAMES)
        first = start * GRID.hop
        samples = waveform[first : first + GRID.num_samples(stop - start)]
        energies = _power_spectra(samples) @ bank
        np.log(np.maximum(energies, ENERGY_FLOOR, out=energies), out=energies)
        yield slice(start, stop), energies


def _power_spectra(samples: np.ndarray) -> np.ndarray:
    """Return `[frames, FFT_SIZE // 2 + 1]`, without means, pre-emphasised and windowed."""
    # Kaldi takes the mean m off a frame, then 0.97 times the sample before. For all but the first
    # sample, which Povey's window multiplies by 0, that is pre-emphasis of the whole signal less
    # 0.03 m, so each sample is pre-emphasised once and not in every frame that covers it.
    emphasised = np.empty_like(samples)
    emphasised[0] = 0.0
    np.multiply(samples[:-1], -PREEMPHASIS, out=emphasised[1:])
    emphasised[1:] += samples[1:]
    means = _frames(samples).mean(axis=1, keepdims=True)
    windowed = np.zeros((len(means), FFT_SIZE), np.float32)
    inside = windowed[:, : GRID.window]
    np.subtract(_frames(emphasised), (1 - PREEMPHASIS) * means, out=inside)
    inside *= povey_window()
    spectra = scipy.fft.rfft(windowed, axis=1)
    power = np.square(spectra.real)
    power += np.square(spectra.imag)
    return power


def _frames(samples: np.ndarray) -> np.ndarray:
    return np.lib.stride_tricks.sliding_window_view(samples, GRID.window)[:: GRID.hop]


@lru_cache
def povey_window() -> np.ndarray:
    """Return Kaldi's window: `[400]` float32."""
    return (np.hanning(GRID.window) ** 0.85).astype(np.float32)


@lru_cache
def mel_bank(num_bins: int) -> np.ndarray:
    """Make triangles of equal width in mel: `[FFT_SIZE // 2 + 1, num_bins]`."""

    def mel(frequency):
        return 1127.0 * np.log1p(np.asarray(frequency) / 700.0)

    low, high = mel(_LOW_FREQUENCY), mel(SAMPLE_RATE / 2)
    width = (high - low) / (num_bins + 1)
    left = low + width * np.arange(num_bins)
    bins = mel(np.arange(FFT_SIZE // 2 + 1) * SAMPLE_RATE / FFT_SIZE)[:, None]
    rising, falling = (bins - left) / width, (left + 2 * width - bins) / width
    bank = np.maximum(0.0, np.minimum(rising, falling))
    bank[-1] = 0.0  # Kaldi leaves out the Nyquist bin
    return bank.astype(np.float32)


class LogMel(Framewise):
    """Logarithm of the energy in 80 mel bands from 20 Hz to 8 kHz, every 10 ms.

    As `torchaudio.compliance.kaldi.fbank` with `num_mel_bins=80`, to rounding.
    """

    grid = GRID
    dimension = 80
    context = 0

    def features(self, waveform: np.ndarray) -> np.ndarray:
        """Map `[T]` float32, nominally in [-1, 1], 16 kHz, to `[frames, 80]` float32."""
        output = np.empty((self.grid.num_frames(len(waveform)), self.dimension), np.float32)
        for frames, energies in log_mel_blocks(waveform, self.dimension):
            output[frames] = energies
        return output
