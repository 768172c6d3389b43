"""MFCC and log-mel spectrograms in torch, for GPUs: the numbers of `kaldi` and `mfcc` to rounding.

A GPU computes them faster than sixteen threads decode the audio.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from music_ssl_fairseq.features import kaldi
from music_ssl_fairseq.features.framewise import Chunk
from music_ssl_fairseq.features.kaldi import LogMel
from music_ssl_fairseq.features.mfcc import DELTA_REACH, Mfcc, liftered_dct
from music_ssl_fairseq.features.no_tf32 import no_tf32

_CHUNK_FRAMES = 18_000  # three minutes: a GPU wants more at once than a CPU's caches hold


class _OnDevice:
    """What both share: log-mel bands, and chunks to tensors."""

    chunk_frames = _CHUNK_FRAMES
    num_mel_bins: int

    def __init__(self, device: str, **settings: Any):
        super().__init__(**settings)
        self.device = device
        self._bank = torch.from_numpy(kaldi.mel_bank(self.num_mel_bins)).to(device)
        self._window = torch.from_numpy(kaldi.povey_window()).to(device)

    def log_mel(self, waveform: Tensor) -> Tensor:
        """Compute logarithms of mel energies: see `kaldi.log_mel_blocks`, which says why so."""
        grid = kaldi.GRID
        share = float(kaldi.PREEMPHASIS)
        if not grid.num_frames(len(waveform)):
            return waveform.new_zeros(0, self._bank.size(1))
        emphasised = F.pad(waveform[1:] - share * waveform[:-1], (1, 0))
        means = waveform.unfold(0, grid.window, grid.hop).mean(1, keepdim=True)
        frames = emphasised.unfold(0, grid.window, grid.hop) - (1 - share) * means
        spectra = torch.fft.rfft(frames * self._window, kaldi.FFT_SIZE)
        power = spectra.real.square() + spectra.imag.square()
        return (power @ self._bank).clamp_min(float(kaldi.ENERGY_FLOOR)).log()

    def compute(self, waveform: Tensor) -> Tensor:
        """Map `[T]` float32 to `[frames, dimension]`, on one device."""
        raise NotImplementedError

    def features(self, waveform: np.ndarray) -> np.ndarray:
        """Map `[T]` float32, nominally in [-1, 1], 16 kHz, to `[frames, dimension]` float32."""
        return self._tensor(waveform).cpu().numpy()

    @torch.no_grad()
    def _tensor(self, waveform: np.ndarray) -> Tensor:
        with no_tf32():
            return self.compute(torch.from_numpy(waveform).to(self.device))

    def tensors_of(self, chunks: Sequence[Chunk]) -> Iterator[Tensor]:
        """Yield `[last - first, dimension]` of each chunk: those frames of the whole track."""
        for chunk in chunks:
            offset = chunk.start // kaldi.GRID.hop
            yield self._tensor(chunk.waveform)[chunk.first - offset : chunk.last - offset]


class TorchLogMel(_OnDevice, LogMel):
    """See `LogMel`."""

    num_mel_bins = LogMel.dimension

    def compute(self, waveform: Tensor) -> Tensor:
        return self.log_mel(waveform)


class TorchMfcc(_OnDevice, Mfcc):
    """See `Mfcc`."""

    def __init__(self, device: str, num_ceps: int = 13):
        super().__init__(device, num_ceps=num_ceps)
        self._cosines = torch.from_numpy(liftered_dct(self.num_mel_bins, num_ceps)).to(device)
        slope = torch.arange(-DELTA_REACH, DELTA_REACH + 1, dtype=torch.float32)
        self._slope = (slope / slope.square().sum()).to(device)

    def compute(self, waveform: Tensor) -> Tensor:
        ceps = self.log_mel(waveform) @ self._cosines
        if not len(ceps):
            return ceps.new_zeros(0, self.dimension)
        slopes = self._deltas(ceps)
        return torch.cat([ceps, slopes, self._deltas(slopes)], 1)

    def _deltas(self, values: Tensor) -> Tensor:
        padded = F.pad(values.t()[None], (DELTA_REACH, DELTA_REACH), mode="replicate")[0]
        return (padded.unfold(1, len(self._slope), 1) @ self._slope).t()
