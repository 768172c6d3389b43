"""Log-mel bands on the extractor's frames: a further input of the encoder, or a source of units.

The extractor's group norm scales each channel to the same power in every crop. So the model never
receives the spectral envelope of a steady tone, which is what tells instruments apart. Mel bands
bring it.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from music_ssl_fairseq.bands.pitch_filters import POWER_FLOOR, centred_windows
from music_ssl_fairseq.errors import InputError
from music_ssl_fairseq.frames import SAMPLE_RATE, FrameGrid

MEL_WINDOW = 1024
"""Samples of a frame's Hann window: 64 ms, so that each of 64 bands holds a bin at least."""

MEDIAN, SPREAD = -4.0, 4.0  # of log power in music, roughly


class MelBands(nn.Module):
    """Log power of mel bands at each of the extractor's frames, with fixed filters."""

    window: Tensor
    filters: Tensor

    def __init__(self, bands: int, grid: FrameGrid):
        """Make the filters for the extractor's frames; InputError if a band would hold no bin."""
        super().__init__()
        self.bands = bands
        self.grid = grid
        filters = _triangles(bands)
        if not filters.any(0).all():
            raise InputError(f"model.mel_bands is {bands}: bands without a bin; take 64 or fewer")
        self.register_buffer("window", torch.hann_window(MEL_WINDOW), persistent=False)
        self.register_buffer("filters", filters, persistent=False)

    @torch.no_grad()
    def log_power(self, waveform: Tensor) -> Tensor:
        """Map `[B, T]` to `[B, frames, bands]` float32, natural logarithm."""
        windows = centred_windows(waveform.float(), MEL_WINDOW, self.grid) * self.window
        power = torch.fft.rfft(windows).abs().square()
        return torch.log(power @ self.filters + POWER_FLOOR)

    def levels(self, waveform: Tensor) -> Tensor:
        """Map `[B, T]` to `[B, frames, bands]` of about mean 0 and variance 1, levels kept."""
        return (self.log_power(waveform) - MEDIAN) / SPREAD

    def forward(self, waveform: Tensor) -> Tensor:
        """Map `[B, T]` to `[B, frames, bands]` float32, each frame with mean 0 and variance 1."""
        return F.layer_norm(self.log_power(waveform), (self.bands,))


def _triangles(bands: int) -> Tensor:
    """Make triangles whose corners are equally spaced in mel: `[MEL_WINDOW // 2 + 1, bands]`.

    To the last digit those of torchaudio's `melscale_fbanks` (HTK's mel, without a norm), which
    cannot be imported beside every torch.
    """
    bins = torch.linspace(0, SAMPLE_RATE // 2, MEL_WINDOW // 2 + 1)
    highest = 2595 * math.log10(1 + SAMPLE_RATE / 2 / 700)
    corners = 700 * (10 ** (torch.linspace(0.0, highest, bands + 2) / 2595) - 1)
    widths = corners.diff()
    slopes = corners - bins.unsqueeze(1)
    falling, rising = slopes[:, 2:] / widths[1:], -slopes[:, :-2] / widths[:-1]
    return torch.minimum(falling, rising).clamp(min=0)
