"""Long filters beside the extractor's short ones: levels of bands a fraction of a semitone apart.

The extractor's first filters are 10 samples long. Two tones a semitone apart differ over a tenth of
a second or more, so the extractor has to tell them apart by what later layers make of its output.
These filters do it at once. They start as a constant-Q filter bank (Brown 1991), a cosine and a
sine per band, and are trained like any other weight.
"""

import math

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from music_ssl_fairseq.errors import InputError
from music_ssl_fairseq.fast.dispatch import working_dtype
from music_ssl_fairseq.frames import SAMPLE_RATE, FrameGrid

LOWEST = 440.0 * 2 ** (-33 / 12)
"""Hz, C2: the first band's frequency."""

OCTAVES = 6
"""The bands reach up to C8, 4,186 Hz."""

PEAK = 4.0
"""Of a filter's weights: a thousand updates at a rate of 4e-4 change them by a tenth at most."""

_SHORTEST = 256  # samples of a filter: 16 ms, as long as the highest bands still need
_QUIET = 1e-7  # power at which the logarithm levels off: 70 dB below a full-scale sine


class ConstantQ(nn.Module):
    """Log power of each band at each of the extractor's frames; nothing in it learns.

    Attributes:
        filters: `[2 * bands, taps]`, cosines and then sines, with a peak of PEAK.
    """

    filters: Tensor
    scale: Tensor

    def __init__(self, bands_per_octave: int, taps: int, grid: FrameGrid):
        """Make the filter bank.

        Args:
            bands_per_octave: 12 for one band per semitone.
            taps: samples of a filter. Bands whose constant-Q filter would be longer are wider.
            grid: the extractor's frames; filters are centred on them.

        Raises:
            InputError: if the filters are shorter than a frame's window.
        """
        super().__init__()
        if taps < grid.window:
            raise InputError(
                f"model.pitch_taps is {taps}: less than the extractor's window of {grid.window}"
            )
        self.bands = bands_per_octave * OCTAVES
        self.hop = grid.hop
        before = (taps - grid.window) // 2
        self.padding = (before, taps - grid.window - before)
        cosines, sines, scale = _constant_q(self.bands, bands_per_octave, taps)
        self.register_buffer("filters", torch.cat([cosines, sines]), persistent=False)
        self.register_buffer("scale", torch.cat([scale, scale])[:, None], persistent=False)

    def log_power(self, waveform: Tensor) -> Tensor:
        """Map `[B, T]` to `[B, frames, bands]` float32, natural logarithm."""
        dtype = working_dtype(waveform)
        windows = F.pad(waveform, self.padding).to(dtype).unfold(-1, self.filters.size(1), self.hop)
        parts = windows @ (self.filters * self.scale).to(dtype).t()
        cosines, sines = parts.float().split(self.bands, dim=-1)
        return torch.log(cosines.square() + sines.square() + _QUIET)

    @torch.no_grad()
    def forward(self, waveform: Tensor) -> Tensor:
        """Map `[B, T]` to `[B, frames, bands]` float32, each frame with mean 0 and variance 1."""
        return F.layer_norm(self.log_power(waveform), (self.bands,))


class PitchFilters(ConstantQ):
    """A constant-Q filter bank to start from, trained like any other weight.

    Attributes:
        filters: a parameter here. The larger its PEAK, the less a learning rate changes it: Adam's
            steps do not depend on a weight's size.
    """

    def __init__(self, bands_per_octave: int, taps: int, grid: FrameGrid):
        """As for `ConstantQ`."""
        super().__init__(bands_per_octave, taps, grid)
        filters = self.filters
        del self.filters
        self.filters = nn.Parameter(filters)
        self.norm = nn.LayerNorm(self.bands)

    def forward(self, waveform: Tensor) -> Tensor:
        """Map `[B, T]` to `[B, frames, bands]`, normalised, in the precision of products."""
        return self.norm(self.log_power(waveform)).to(working_dtype(waveform))


def _constant_q(bands: int, bands_per_octave: int, taps: int) -> tuple[Tensor, Tensor, Tensor]:
    """Cosines and sines `[bands, taps]` under Hann windows, and factors `[bands]`.

    Times its factor, a filter gives a sine of the band's frequency that sine's amplitude.
    """
    quality = 1 / (2 ** (1 / 12) - 1)  # a semitone, however many bands there are
    time = np.arange(taps) - (taps - 1) / 2
    frequency = LOWEST * 2 ** (np.arange(bands)[:, None] / bands_per_octave)
    length = np.clip(quality * SAMPLE_RATE / frequency, _SHORTEST, taps)
    window = np.where(2 * abs(time) < length, np.cos(math.pi * time / length) ** 2, 0.0)
    angle = 2 * math.pi * frequency / SAMPLE_RATE * time
    factor = 2 / PEAK / window.sum(axis=1)
    found = (PEAK * window * np.cos(angle), PEAK * window * np.sin(angle), factor)
    cosines, sines, scale = (torch.from_numpy(part).float() for part in found)
    return cosines, sines, scale
