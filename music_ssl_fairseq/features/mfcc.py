"""Kaldi's MFCC with deltas: the features of HuBERT's first iteration.

The same values as fairseq's `dump_mfcc_feature.py`, that is `torchaudio.compliance.kaldi.mfcc` with
`use_energy=False` followed by `compute_deltas` twice, to rounding. Computed here in numpy, because
torchaudio builds its mel bank and DCT at every call, passes over the frames seven times, and costs
each worker an import of torch: on one core 3,900 seconds of audio a second against 730.
"""

from functools import lru_cache

import numpy as np
import scipy.fft

from music_ssl_fairseq.frames import SAMPLE_RATE, FrameGrid

_FFT_SIZE = 512
_PREEMPHASIS = np.float32(0.97)
_LOW_FREQUENCY = 20.0  # Hz; the highest band ends at the Nyquist frequency
_LIFTER = 22.0
_ENERGY_FLOOR = np.finfo(np.float32).eps
_BLOCK = 256  # frames at a time: their spectra stay in a core's second-level cache
_DELTA_REACH = 2  # frames on either side of the one whose slope is taken


class Mfcc:
    """13 cepstra (C0 first), their slopes and the slopes' slopes: 39 values every 10 ms."""

    grid = FrameGrid(window=400, hop=160)
    frame_rate = 100.0
    num_mel_bins = 23
    num_ceps = 13
    dimension = 3 * num_ceps
    context = 2 * _DELTA_REACH
    fingerprint = None

    def features(self, waveform: np.ndarray) -> np.ndarray:
        """`[T]` float32, nominally in [-1, 1], 16 kHz, to `[frames, 39]` float32."""
        ceps = self.cepstra(waveform)
        if not len(ceps):
            return np.zeros((0, self.dimension), np.float32)
        slopes = deltas(ceps)
        return np.concatenate([ceps, slopes, deltas(slopes)], axis=1)

    def cepstra(self, waveform: np.ndarray) -> np.ndarray:
        """The static part alone: `[frames, num_ceps]` float32."""
        num_frames = self.grid.num_frames(len(waveform))
        output = np.empty((num_frames, self.num_ceps), np.float32)
        mel_bank = _mel_bank(self.num_mel_bins)
        cosines = _liftered_dct(self.num_mel_bins, self.num_ceps)
        for start in range(0, num_frames, _BLOCK):
            stop = min(num_frames, start + _BLOCK)
            first = start * self.grid.hop
            samples = waveform[first : first + self.grid.num_samples(stop - start)]
            energies = _power_spectra(samples, self.grid) @ mel_bank
            np.log(np.maximum(energies, _ENERGY_FLOOR, out=energies), out=energies)
            np.matmul(energies, cosines, out=output[start:stop])
        return output


def deltas(values: np.ndarray) -> np.ndarray:
    """Slope over five frames by least squares, edges repeated: `[frames, D]` to the same shape."""
    num_frames = len(values)
    padded = np.pad(values, ((_DELTA_REACH, _DELTA_REACH), (0, 0)), mode="edge")
    slope = np.zeros_like(values)
    for offset in range(1, _DELTA_REACH + 1):
        ahead = padded[_DELTA_REACH + offset :][:num_frames]
        behind = padded[_DELTA_REACH - offset :][:num_frames]
        slope += np.float32(offset) * (ahead - behind)
    return slope / np.float32(2 * sum(i * i for i in range(1, _DELTA_REACH + 1)))


def _power_spectra(samples: np.ndarray, grid: FrameGrid) -> np.ndarray:
    """`[frames, _FFT_SIZE // 2 + 1]` of frames without their mean, pre-emphasised and windowed."""
    # Kaldi takes the mean m off a frame, then 0.97 times the sample before. For all but the first
    # sample, which Povey's window multiplies by 0, that is pre-emphasis of the whole signal less
    # 0.03 m, so each sample is pre-emphasised once and not in every frame that covers it.
    emphasised = np.empty_like(samples)
    emphasised[0] = 0.0
    np.multiply(samples[:-1], -_PREEMPHASIS, out=emphasised[1:])
    emphasised[1:] += samples[1:]
    means = _frames(samples, grid).mean(axis=1, keepdims=True)
    windowed = np.zeros((len(means), _FFT_SIZE), np.float32)
    inside = windowed[:, : grid.window]
    np.subtract(_frames(emphasised, grid), (1 - _PREEMPHASIS) * means, out=inside)
    inside *= _povey_window(grid.window)
    spectra = scipy.fft.rfft(windowed, axis=1)
    power = np.square(spectra.real)
    power += np.square(spectra.imag)
    return power


def _frames(samples: np.ndarray, grid: FrameGrid) -> np.ndarray:
    return np.lib.stride_tricks.sliding_window_view(samples, grid.window)[:: grid.hop]


@lru_cache
def _povey_window(size: int) -> np.ndarray:
    return (np.hanning(size) ** 0.85).astype(np.float32)


@lru_cache
def _mel_bank(num_bins: int) -> np.ndarray:
    """Triangles of equal width in mel: `[_FFT_SIZE // 2 + 1, num_bins]`."""

    def mel(frequency):
        return 1127.0 * np.log1p(np.asarray(frequency) / 700.0)

    low, high = mel(_LOW_FREQUENCY), mel(SAMPLE_RATE / 2)
    width = (high - low) / (num_bins + 1)
    left = low + width * np.arange(num_bins)
    bins = mel(np.arange(_FFT_SIZE // 2 + 1) * SAMPLE_RATE / _FFT_SIZE)[:, None]
    rising, falling = (bins - left) / width, (left + 2 * width - bins) / width
    bank = np.maximum(0.0, np.minimum(rising, falling))
    bank[-1] = 0.0  # Kaldi leaves out the Nyquist bin
    return bank.astype(np.float32)


@lru_cache
def _liftered_dct(num_bins: int, num_ceps: int) -> np.ndarray:
    """Orthonormal DCT-II with sinusoidal liftering: `[num_bins, num_ceps]`."""
    order = np.arange(num_ceps)
    angles = np.pi / num_bins * (np.arange(num_bins)[:, None] + 0.5) * order
    scale = np.where(order == 0, np.sqrt(1 / num_bins), np.sqrt(2 / num_bins))
    lifter = 1.0 + 0.5 * _LIFTER * np.sin(np.pi * order / _LIFTER)
    return (np.cos(angles) * scale * lifter).astype(np.float32)
