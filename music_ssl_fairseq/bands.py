"""Frequency bands on the extractor's frames: further inputs of an encoder, and targets.

The extractor's first filters are 10 samples long. Tones a semitone apart differ only over a tenth
of a second or more, so later layers have to separate them. `PitchFilters` separate them at once:
long filters beside the short ones, bands a fraction of a semitone apart. They start as a constant-Q
filter bank (Brown 1991), a cosine and a sine per band, and are trained like any other weight.

The extractor's group norm scales each channel to the same power in every crop. So the model never
receives the spectral envelope of a steady tone, which is what tells instruments apart. `MelBands`
bring it. They are a source of units as well.
"""

import math

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from music_ssl_fairseq.errors import InputError
from music_ssl_fairseq.fast.dispatch import working_dtype
from music_ssl_fairseq.frames import SAMPLE_RATE, FrameGrid

LOWEST_HZ = 440.0 * 2 ** (-33 / 12)
"""Frequency of the first band: C2."""

OCTAVES = 6
"""Range of the bands: up to C8, 4,186 Hz."""

PEAK = 4.0
"""Largest weight of a filter: a thousand updates at a rate of 4e-4 change it by a tenth at most."""

_MIN_TAPS = 256  # samples of the highest bands' filters: 16 ms
POWER_FLOOR = 1e-7  # added before the logarithm: 70 dB below a full-scale sine


def centred_windows(waveform: Tensor, size: int, grid: FrameGrid) -> Tensor:
    """Cut `[B, T]` into windows `[B, frames, size]`, each centred on one of the grid's frames."""
    before = (size - grid.window) // 2
    return F.pad(waveform, (before, size - grid.window - before)).unfold(-1, size, grid.hop)


class ConstantQ(nn.Module):
    """Log power of each band at each of the extractor's frames, with fixed filters."""

    filters: Tensor  # `[2 * bands, taps]`, cosines and then sines, with a peak of PEAK
    scale: Tensor

    def __init__(self, bands_per_octave: int, taps: int, grid: FrameGrid):
        """Make the filter bank.

        Raises InputError if the filters are shorter than a frame's window.

        Args:
            bands_per_octave: 12 for one band per semitone.
            taps: samples per filter. Bands whose constant-Q filter would be longer are wider.
            grid: the extractor's frames, on which filters are centred.
        """
        super().__init__()
        if taps < grid.window:
            raise InputError(
                f"model.pitch_taps is {taps}: less than the extractor's window of {grid.window}"
            )
        self.bands = bands_per_octave * OCTAVES
        self.grid = grid
        cosines, sines, scale = _constant_q(self.bands, bands_per_octave, taps)
        self.register_buffer("filters", torch.cat([cosines, sines]), persistent=False)
        self.register_buffer("scale", torch.cat([scale, scale])[:, None], persistent=False)

    def log_power(self, waveform: Tensor) -> Tensor:
        """Map `[B, T]` to `[B, frames, bands]` float32, natural logarithm."""
        dtype = working_dtype(waveform)
        windows = centred_windows(waveform.to(dtype), self.filters.size(1), self.grid)
        parts = windows @ (self.filters * self.scale).to(dtype).t()
        cosines, sines = parts.float().split(self.bands, dim=-1)
        return torch.log(cosines.square() + sines.square() + POWER_FLOOR)

    @torch.no_grad()
    def forward(self, waveform: Tensor) -> Tensor:
        """Map `[B, T]` to `[B, frames, bands]` float32, each frame with mean 0 and variance 1."""
        return F.layer_norm(self.log_power(waveform), (self.bands,))


class PitchFilters(ConstantQ):
    """A constant-Q filter bank whose `filters` are trained.

    A larger PEAK makes them change less at a given learning rate, because Adam's steps do not
    depend on a weight's size.
    """

    def __init__(self, bands_per_octave: int, taps: int, grid: FrameGrid):
        """Make the filter bank, with the arguments of `ConstantQ`."""
        super().__init__(bands_per_octave, taps, grid)
        filters = self.filters
        del self.filters  # the buffer of `ConstantQ`; a parameter takes its name
        self.filters = nn.Parameter(filters)
        self.norm = nn.LayerNorm(self.bands)

    def forward(self, waveform: Tensor) -> Tensor:
        """Map `[B, T]` to `[B, frames, bands]`, normalised, in the precision of products."""
        return self.norm(self.log_power(waveform)).to(working_dtype(waveform))


def _constant_q(bands: int, bands_per_octave: int, taps: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return cosines and sines `[bands, taps]` under Hann windows, and factors `[bands]`.

    A filter times its factor responds to a sine of its frequency with the sine's amplitude.
    """
    quality = 1 / (2 ** (1 / 12) - 1)  # a semitone, however many bands there are
    time = np.arange(taps) - (taps - 1) / 2
    frequency = LOWEST_HZ * 2 ** (np.arange(bands)[:, None] / bands_per_octave)
    length = np.clip(quality * SAMPLE_RATE / frequency, _MIN_TAPS, taps)
    window = np.where(2 * abs(time) < length, np.cos(math.pi * time / length) ** 2, 0.0)
    angle = 2 * math.pi * frequency / SAMPLE_RATE * time
    factor = 2 / PEAK / window.sum(axis=1)
    found = (PEAK * window * np.cos(angle), PEAK * window * np.sin(angle), factor)
    cosines, sines, scale = (torch.from_numpy(part).float() for part in found)
    return cosines, sines, scale


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
