"""Kaldi's log-mel spectrogram (fbank)."""

import numpy as np

from music_ssl_fairseq.features.framewise import Framewise
from music_ssl_fairseq.features.kaldi import FRAME_RATE, GRID, log_mel_blocks


class LogMel(Framewise):
    """Logarithm of the energy in 80 mel bands from 20 Hz to 8 kHz, every 10 ms.

    As `torchaudio.compliance.kaldi.fbank` with `num_mel_bins=80`, to rounding.
    """

    grid = GRID
    frame_rate = FRAME_RATE
    dimension = 80
    context = 0

    def features(self, waveform: np.ndarray) -> np.ndarray:
        """Map `[T]` float32, nominally in [-1, 1], 16 kHz, to `[frames, 80]` float32."""
        output = np.empty((self.grid.num_frames(len(waveform)), self.dimension), np.float32)
        for frames, energies in log_mel_blocks(waveform, self.dimension):
            output[frames] = energies
        return output
