"""Long tracks in overlapping windows, put together again so that no seam shows.

What a frame becomes depends on all that goes through the model with it. How loud the whole is, in
the waveform's normalisation and the extractor's group norm, matters most: a quiet window by itself
comes out as if it were loud. So these statistics are those of the section that a window is part of,
the whole track if it has ten minutes or less (`upstream.statistics`). What is left is that
attention sees only the window, and that positional convolutions meet zeros at its ends. Therefore
neighbouring windows overlap by at least `Windowing.overlap` seconds. In the middle of each overlap
one fades into the other, linearly, over FADE seconds; what is nearer to a window's end, 1.3 s or
more, is not used.

Only a track's length decides where its windows and sections lie. Any section can therefore be
computed alone, and comes out as it does in the whole track.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from math import ceil

import numpy as np
import torch
from torch import Tensor

from music_ssl_fairseq.errors import InputError
from music_ssl_fairseq.frames import SAMPLE_RATE, FrameGrid

FADE = 0.4
"""Seconds over which one window's frames turn into the next one's."""


@dataclass(frozen=True)
class Windowing:
    """How tracks are cut.

    Attributes:
        seconds: length of a window.
        overlap: the least that neighbours share, in seconds. 3 s leave 1.3 s at each window's end
            unused, which is what the positional convolutions of all these models reach.
        whole: tracks up to this many seconds are one window: 1.5 windows cost less than two.
        section: seconds of audio whose loudness counts together, and that must fit into memory.
    """

    seconds: float = 30.0
    overlap: float = 3.0
    whole: float = 45.0
    section: float = 600.0

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
    """Part of a track that goes through the model together.

    Attributes:
        start: its first sample in the track, at 16 kHz.
        num_samples: how many there are. All of them, in a track that is one window: norms hear
            the last ones too, though they make no frame.
        first: its first frame in the track.
        num_frames: how many there are.
        weights: `[num_frames]` float32: the share that each frame has in the result. Over all
            windows of a track, the shares of a frame sum to 1.
        done: how many of its frames, from `first` on, no later window changes.
    """

    start: int
    num_samples: int
    first: int
    num_frames: int
    weights: np.ndarray
    done: int

    @property
    def last(self) -> int:
        """The frame after its last one."""
        return self.first + self.num_frames


def plan(num_samples: int, grid: FrameGrid, windowing: Windowing | None = None) -> list[Window]:
    """The windows of a track, first to last: one, or several of the same length.

    Args:
        num_samples: of the whole track, at 16 kHz.
    """
    windowing = windowing or Windowing()
    num_frames = grid.num_frames(num_samples)
    if num_frames <= grid.num_frames(round(windowing.whole * SAMPLE_RATE)):
        weights = np.ones(num_frames, np.float32)
        return [Window(0, num_samples, 0, num_frames, weights, num_frames)]
    size = grid.num_frames(round(windowing.seconds * SAMPLE_RATE))
    overlap = ceil(windowing.overlap * SAMPLE_RATE / grid.hop)
    count = ceil((num_frames - overlap) / (size - overlap))
    # Evenly spread, so that every seam has as much of both sides as the last one.
    starts = [i * (num_frames - size) // (count - 1) for i in range(count)]
    return list(_weighted(starts, size, grid))


def _weighted(starts: list[int], size: int, grid: FrameGrid) -> Iterator[Window]:
    fade = round(FADE * SAMPLE_RATE / grid.hop)
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
    """Consecutive windows of a track, whose loudness counts together.

    Attributes:
        start: its first sample in the track, at 16 kHz.
        num_samples: how many there are.
        windows: in it, first to last; their positions are in the track.
    """

    start: int
    num_samples: int
    windows: list[Window]

    def part(self, waveform: Tensor, window: Window) -> Tensor:
        """A window's samples out of the section's, `[..., num_samples]`."""
        start = window.start - self.start
        return waveform[..., start : start + window.num_samples]


def sections(
    num_samples: int, grid: FrameGrid, windowing: Windowing | None = None
) -> list[Section]:
    """The windows of a track in sections, of about the same length and at least two windows each.

    Args:
        num_samples: of the whole track, at 16 kHz.
    """
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
        # The last samples of a track make no frame, but are heard.
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


class Stitcher:
    """Puts the windows of one track together, as they come, first to last."""

    def __init__(self) -> None:
        self._open: Tensor | None = None

    def add(self, window: Window, values: Tensor) -> Tensor:
        """Take the next window's frames; return those that are now final.

        Args:
            values: `[..., num_frames, D]`.

        Returns:
            `[..., done, D]`: the track's frames `[window.first, window.first + window.done)`.
        """
        follows = window.done < window.num_frames
        if self._open is not None or follows:
            weights = torch.from_numpy(window.weights).to(values.device)
            values = values * weights.unsqueeze(-1)
        if self._open is not None:
            shared = self._open.size(-2)
            values[..., :shared, :] += self._open
        self._open = values[..., window.done :, :].clone() if follows else None
        return values[..., : window.done, :]
