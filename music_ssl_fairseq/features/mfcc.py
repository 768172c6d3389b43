"""Kaldi's MFCC with deltas: the features of HuBERT's first iteration.

The same values as fairseq's `dump_mfcc_feature.py`, that is `torchaudio.compliance.kaldi.mfcc` with
`use_energy=False` followed by `compute_deltas` twice, to rounding.
"""

from functools import lru_cache

import numpy as np

from music_ssl_fairseq.features.framewise import Framewise
from music_ssl_fairseq.features.kaldi import GRID, log_mel_blocks

_LIFTER = 22.0
DELTA_REACH = 2  # frames on either side of the one whose slope is taken


class Mfcc(Framewise):
    """Cepstra (C0 first), their slopes and the slopes' slopes: 3 `num_ceps` values every 10 ms.

    `num_ceps` is 13 as in HuBERT, or up to 23, the number of mel bands.
    """

    grid = GRID
    context = 2 * DELTA_REACH
    num_mel_bins = 23

    def __init__(self, num_ceps: int = 13):
        self.num_ceps = num_ceps
        self.dimension = 3 * num_ceps

    def features(self, waveform: np.ndarray) -> np.ndarray:
        """Map `[T]` float32, nominally in [-1, 1], 16 kHz, to `[frames, dimension]` float32."""
        ceps = self.cepstra(waveform)
        if not len(ceps):
            return np.zeros((0, self.dimension), np.float32)
        slopes = deltas(ceps)
        return np.concatenate([ceps, slopes, deltas(slopes)], axis=1)

    def cepstra(self, waveform: np.ndarray) -> np.ndarray:
        """Compute the static part alone: `[frames, num_ceps]` float32."""
        output = np.empty((self.grid.num_frames(len(waveform)), self.num_ceps), np.float32)
        cosines = liftered_dct(self.num_mel_bins, self.num_ceps)
        for frames, energies in log_mel_blocks(waveform, self.num_mel_bins):
            np.matmul(energies, cosines, out=output[frames])
        return output


def deltas(values: np.ndarray) -> np.ndarray:
    """Compute slopes of `[frames, D]` over five frames by least squares, edges repeated."""
    num_frames = len(values)
    padded = np.pad(values, ((DELTA_REACH, DELTA_REACH), (0, 0)), mode="edge")
    slope = np.zeros_like(values)
    for offset in range(1, DELTA_REACH + 1):
        ahead = padded[DELTA_REACH + offset :][:num_frames]
        behind = padded[DELTA_REACH - offset :][:num_frames]
        slope += np.float32(offset) * (ahead - behind)
    return slope / np.float32(2 * sum(i * i for i in range(1, DELTA_REACH + 1)))


@lru_cache
def liftered_dct(num_bins: int, num_ceps: int) -> np.ndarray:
    """Make an orthonormal DCT-II with sinusoidal liftering: `[num_bins, num_ceps]`."""
    order = np.arange(num_ceps)
    angles = np.pi / num_bins * (np.arange(num_bins)[:, None] + 0.5) * order
    scale = np.where(order == 0, np.sqrt(1 / num_bins), np.sqrt(2 / num_bins))
    lifter = 1.0 + 0.5 * _LIFTER * np.sin(np.pi * order / _LIFTER)
    return (np.cos(angles) * scale * lifter).astype(np.float32)
