"""Cut long tracks into overlapping windows, and stitch their frames without a seam.

A frame depends on everything that goes through the model with it. Loudness matters most, through
the waveform's normalisation and the extractor's group norm: a quiet window alone gives the features
of a loud one. So windows take these statistics from their section, which is the whole track up to
ten minutes (`Statistics`). Two effects remain: attention is limited to the window, and
positional convolutions are padded with zeros at its ends. Therefore neighbouring windows overlap by
at least `Windowing.overlap` seconds. In the middle of each overlap one fades linearly into the
other over FADE_SECONDS; the outer 1.3 s or more of a window are not used.

The places of windows and sections follow from a track's length alone, so a section can be computed
alone with the same result as in the whole track.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import ceil

import numpy as np
import torch
from torch import Tensor, nn

from music_ssl_fairseq.errors import InputError
from music_ssl_fairseq.fast.dispatch import fold_moments, window_moments
from music_ssl_fairseq.frames import SAMPLE_RATE, FrameGrid, samples_in
from music_ssl_fairseq.modules.audio_encoder import AudioEncoder
from music_ssl_fairseq.modules.conv_extractor import ConvLayer

FADE_SECONDS = 0.4
"""Seconds over which one window fades into the next."""


@dataclass(frozen=True)
class Windowing:
    """The cutting of tracks, in seconds."""

    seconds: float = 30.0  # length of a window
    # The least overlap of neighbours: 3 s leave 1.3 s at each window's end unused, the reach of the
    # positional convolutions of all these models
    overlap: float = 3.0
    whole: float = 45.0  # tracks up to this length are one window: 1.5 windows cost less than two
    section: float = 600.0  # of audio that shares its statistics; it must fit into memory

    def __post_init__(self) -> None:
        if not 3.0 <= self.overlap <= self.seconds / 2:
            raise InputError(
                f"windows of {self.seconds:g} s that overlap by {self.overlap:g} s: the overlap "
                "must be between 3 s and half a window"
            )
        if self.whole < self.seconds:
            raise InputError(
                f"tracks up to {self.whole:g} s whole, longer ones in windows of "
                f"{self.seconds:g} s: a window must not be longer than that"
            )
        if self.section < self.whole + self.seconds:
            raise InputError(f"sections of {self.section:g} s are too short for these windows")


@dataclass(frozen=True, eq=False)
class Window:
    """A part of a track that goes through the model at once."""

    start: int  # its first sample in the track, at 16 kHz
    # Number of samples; in a track of one window all of them, because norms include the last
    # ones, though they make no frame
    num_samples: int
    first: int  # its first frame in the track
    num_frames: int  # number of frames
    # `[num_frames]` float32: each frame's share in the result. Over all windows of a track, the
    # shares of a frame sum to 1.
    weights: np.ndarray
    done: int  # number of its frames, from `first` on, that no later window changes

    @property
    def last(self) -> int:
        """The frame after its last frame."""
        return self.first + self.num_frames


def plan(num_samples: int, grid: FrameGrid, windowing: Windowing | None = None) -> list[Window]:
    """Return a track's windows, by its length at 16 kHz: one, or several of the same length."""
    windowing = windowing or Windowing()
    num_frames = grid.num_frames(num_samples)
    if num_frames <= grid.num_frames(samples_in(windowing.whole)):
        weights = np.ones(num_frames, np.float32)
        return [Window(0, num_samples, 0, num_frames, weights, num_frames)]
    size = grid.num_frames(samples_in(windowing.seconds))
    overlap = ceil(windowing.overlap * SAMPLE_RATE / grid.hop)
    count = ceil((num_frames - overlap) / (size - overlap))
    # Evenly spread, so that all overlaps are alike.
    starts = [i * (num_frames - size) // (count - 1) for i in range(count)]
    return list(_weighted(starts, size, grid))


def _weighted(starts: list[int], size: int, grid: FrameGrid) -> Iterator[Window]:
    fade = round(FADE_SECONDS * SAMPLE_RATE / grid.hop)
    # The middle of a cell, so that a fade of n frames has no weight of exactly 0 or 1.
    rising = (np.arange(fade, dtype=np.float32) + np.float32(0.5)) / np.float32(fade)
    for i, start in enumerate(starts):
        weights = np.ones(size, np.float32)
        done = size
        if i > 0:
            seam = (starts[i - 1] + size - start - fade) // 2
            weights[:seam] = 0
            weights[seam : seam + fade] = rising
        if i + 1 < len(starts):
            overlap = start + size - starts[i + 1]
            seam = size - overlap + (overlap - fade) // 2
            weights[seam : seam + fade] *= 1 - rising
            weights[seam + fade :] = 0
            done = size - overlap
        yield Window(start * grid.hop, grid.num_samples(size), start, size, weights, done)


@dataclass(frozen=True, eq=False)
class Section:
    """Consecutive windows of a track that share their statistics."""

    start: int  # its first sample in the track, at 16 kHz
    num_samples: int  # number of samples
    windows: list[Window]  # first to last; their positions are in the track

    def part(self, waveform: Tensor, window: Window) -> Tensor:
        """Return a window's samples out of the section's, `[..., num_samples]`."""
        start = window.start - self.start
        return waveform[..., start : start + window.num_samples]


def sections(
    num_samples: int, grid: FrameGrid, windowing: Windowing | None = None
) -> list[Section]:
    """Return the windows of `plan` in sections of similar length, each of two windows or more."""
    windowing = windowing or Windowing()
    windows = plan(num_samples, grid, windowing)
    if num_samples <= windowing.section * SAMPLE_RATE:
        return [Section(0, num_samples, windows)]
    # Neighbouring windows lie at most this far apart.
    hop = windowing.seconds - windowing.overlap
    most = 1 + int((windowing.section - windowing.seconds) / hop)
    count = ceil(len(windows) / most)
    bounds = [i * len(windows) // count for i in range(count + 1)]
    found = []
    for first, last in pairwise(bounds):
        inside = windows[first:last]
        start, end = inside[0].start, inside[-1].start + inside[-1].num_samples
        # The last samples of a track make no frame, but count in the statistics.
        end = num_samples if last == len(windows) else end
        found.append(Section(start, end - start, inside))
    return found


def add_share(
    frames: Tensor, first: int, window: Window, values: Tensor, weights: Tensor | None = None
) -> None:
    """Add a window's share to some frames of its track, in place.

    Args:
        frames: `[..., n, D]`: the track's frames from `first` on.
        values: `[..., num_frames, D]` of the window.
        weights: the window's, if they are on the values' device already.
    """
    start, stop = max(first, window.first), min(first + frames.size(-2), window.last)
    inside = slice(start - window.first, stop - window.first)
    weights = torch.from_numpy(window.weights).to(values.device) if weights is None else weights
    share = weights[inside].unsqueeze(-1) * values[..., inside, :]
    frames[..., start - first : stop - first, :] += share


@dataclass(frozen=True, eq=False)
class Statistics:
    """Statistics of B waveforms, for encoders that take them in windows.

    The waveform's normalisation and the extractor's group norm are linear once these are known.
    With those of a whole section, the extractor's output on each window equals, to rounding, its
    output on the section.
    """

    mean: Tensor  # `[B, 1]`
    scale: Tensor  # `[B, 1]`; the extractor's input is `(waveform - mean) * scale`
    # Filters `[B, C, kernel]` and shifts `[B, C]` of the first convolution with its group norm;
    # None for an extractor with layer norms
    folded: tuple[Tensor, Tensor] | None


def joined(statistics: Sequence[Statistics]) -> Statistics:
    """Concatenate the statistics of several batches."""
    folded = [one.folded for one in statistics if one.folded is not None]
    return Statistics(
        torch.cat([one.mean for one in statistics]),
        torch.cat([one.scale for one in statistics]),
        (torch.cat([f for f, _ in folded]), torch.cat([s for _, s in folded])) if folded else None,
    )


@torch.no_grad()
def measure(model: AudioEncoder, waveform: Tensor, normalise: bool) -> Statistics:
    """Measure waveforms `[B, T]`, on the model's device; `normalise` is the checkpoint's."""
    mean = torch.zeros_like(waveform[:, :1])
    scale = torch.ones_like(mean)
    if normalise:
        variance, mean = torch.var_mean(waveform, -1, keepdim=True, correction=0)
        scale = torch.rsqrt(variance + 1e-5)
    first = model.feature_extractor.conv_layers[0]
    assert isinstance(first, ConvLayer)
    norm = first.norm
    if not isinstance(norm, nn.GroupNorm):
        return Statistics(mean, scale, None)
    source = (waveform - mean) * scale
    conv = first.conv
    # The norm's mean would cancel a bias of the convolution.
    moments = window_moments(source, conv.weight.size(-1), conv.stride[0])
    folded = fold_moments(*moments, conv.weight, norm.weight, norm.bias, norm.eps)
    return Statistics(mean, scale, folded)
