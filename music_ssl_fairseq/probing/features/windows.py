"""Cut clips into windows, and bring features to 50 frames per second."""

from itertools import pairwise
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from music_ssl_fairseq.frames import SAMPLE_RATE, FrameGrid, first_from

FRAME_RATE = 50
"""Frames per second of beats, whatever the encoder's own rate."""

FRAME_HOP = SAMPLE_RATE // FRAME_RATE

MIN_WINDOW_SAMPLES = 10 * FRAME_HOP
"""Shortest window of beats, at the end of a clip."""


class ClipWindow(NamedTuple):
    """A window of a file: its first sample and its length, in samples at 16 kHz."""

    start: int
    num_samples: int


def cut_windows(start: int, stop: int, window: int, least: int) -> list[ClipWindow]:
    """Cut `[start, stop)` into windows of `window` samples (0: one window of it all).

    A remainder of at least `least` samples becomes a shorter window; a shorter clip is one window.
    """
    if window == 0 or stop - start <= window:
        return [ClipWindow(start, stop - start)]
    return [
        ClipWindow(first, min(window, stop - first))
        for first in range(start, stop, window)
        if stop - first >= least
    ]


def frames_of(window: ClipWindow) -> int:
    """Count the frames, 50 per second, that begin in a window."""
    return max(1, window.num_samples // FRAME_HOP)


def to_frame_rate(features: Tensor, grid: FrameGrid, num_frames: int) -> Tensor:
    """Bring features of any rate, `[frames, ...]` of `grid`, to 50 frames per second.

    Frame `t` is the mean of the frames that begin in its 20 ms; if there is none, the last one
    before. The result is `[num_frames, ...]`; frames beyond the end repeat the last one.
    """
    if grid.hop == FRAME_HOP and len(features) >= num_frames:
        return features[:num_frames]
    edges = first_from(np.arange(num_frames + 1) * FRAME_HOP, grid.hop).clip(max=len(features))
    frames = [
        features[a:b].mean(0) if b > a else features[max(0, a - 1)] for a, b in pairwise(edges)
    ]
    return torch.stack(frames)
