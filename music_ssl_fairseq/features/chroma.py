"""Compute chroma: the strength of each of the twelve pitch classes."""

import numpy as np

from music_ssl_fairseq.features import cqt
from music_ssl_fairseq.features.framewise import Framewise
from music_ssl_fairseq.features.kaldi import FRAME_RATE, GRID

_MIN_AMPLITUDE = np.float32(1e-3)  # that is scaled to 1: 60 dB below a full-scale sine


class Chroma(Framewise):
    """Amplitudes of `cqt`'s bands summed over its octaves, C first, the strongest scaled to 1.

    As `librosa.feature.chroma_cqt` makes of a constant-Q transform. Frames whose strongest class is
    below -60 dB keep that quietness, so that silence is 0 and hiss no chord.
    """

    grid = GRID
    frame_rate = FRAME_RATE
    dimension = cqt.BINS_PER_OCTAVE
    context = cqt.Cqt.context

    def features(self, waveform: np.ndarray) -> np.ndarray:
        """Map `[T]` float32, nominally in [-1, 1], 16 kHz, to `[frames, 12]` float32 in [0, 1]."""
        bands = cqt.magnitudes(waveform)
        classes = bands.reshape(-1, cqt.NUM_OCTAVES, cqt.BINS_PER_OCTAVE).sum(axis=1)
        return classes / np.maximum(classes.max(axis=1, keepdims=True), _MIN_AMPLITUDE)
