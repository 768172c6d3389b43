"""Which parts of a track become windows, and which frames of 50 a second these hold."""

from typing import NamedTuple

import numpy as np

from music_ssl_fairseq.frames import SAMPLE_RATE, FrameGrid

FRAME_RATE = 50
"""Frames a second that beats are counted in, whatever the encoder's own rate."""

FRAME_HOP = SAMPLE_RATE // FRAME_RATE

_SHORTEST_FRAMES = 10  # a rest with fewer is not worth a pass of its own


class Window(NamedTuple):
    """A part of a file: its first sample and its length, in samples at 16 kHz."""

    start: int
    num_samples: int


def clip_windows(start: int, stop: int, window: int) -> list[Window]:
    """Cut `[start, stop)` into windows of `window` samples (0: one window of it all).

    What is left at the end is a shorter window of its own if it is at least half as long, or if
    there is no other.
    """
    if window == 0 or stop - start <= window:
        return [Window(start, stop - start)]
    full, rest = divmod(stop - start, window)
    windows = [Window(start + i * window, window) for i in range(full)]
    if 2 * rest >= window:
        windows.append(Window(start + full * window, rest))
    return windows


def frame_windows(start: int, stop: int, window: int) -> list[Window]:
    """The same for tasks with a label a frame, where no frames should get lost: a rest is left out
    only if it has fewer than ten."""
    if window == 0 or stop - start <= window:
        return [Window(start, stop - start)]
    return [
        Window(first, min(window, stop - first))
        for first in range(start, stop, window)
        if stop - first >= _SHORTEST_FRAMES * FRAME_HOP
    ]


def frames_of(window: Window) -> int:
    """Frames of 50 a second that begin in a window."""
    return max(1, window.num_samples // FRAME_HOP)


def to_frame_rate(features: np.ndarray, grid: FrameGrid, num_frames: int) -> np.ndarray:
    """Bring features of any rate to 50 a second.

    Frame `t` becomes the mean of the frames that begin in its 20 ms, or where there is none, the
    last that began before.

    Args:
        features: `[frames, ...]`, of `grid`.

    Returns:
        `[num_frames, ...]`; the last one that there is stands for those beyond the end.
    """
    if grid.hop == FRAME_HOP and len(features) >= num_frames:
        return features[:num_frames]
    edges = np.arange(num_frames + 1) * FRAME_HOP
    first = np.minimum(-(-edges[:-1] // grid.hop), len(features))
    last = np.minimum(-(-edges[1:] // grid.hop), len(features))
    return np.stack(
        [
            features[a:b].mean(axis=0) if b > a else features[max(0, a - 1)]
            for a, b in zip(first, last, strict=True)
        ]
    )
