"""The only arithmetic between samples, model frames and labels.

Conventions. A *frame* `t` of a grid covers the samples `[t * hop, t * hop + window)`, and exists
only if all of them do (Kaldi's `snip_edges`, and what a convolution without padding computes). The
default extractor, at 16 kHz, has a window of 400 samples and a hop of 320: 50 frames a second. MFCC
frames have a window of 400 and a hop of 160. So model frame `t` covers exactly the samples of MFCC
frame `2 t`, and both start on multiples of 160 samples.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil, gcd
from typing import Any

import numpy as np

from music_ssl_fairseq.errors import InputError

SAMPLE_RATE = 16_000
"""Hz. What every model of this package hears."""

LENGTH_TOLERANCE = 0.1
"""Seconds by which labels may end before or after their audio (fairseq's HubertDataset: 0.1)."""


def frames_within(num_samples: Any, window: int, hop: int) -> Any:
    """Count the frames that lie within `num_samples`, element-wise; below 1 if not even one does.

    Args:
        num_samples: an int, an array or a tensor of ints.
        window: samples per frame.
        hop: samples from one frame to the next.
    """
    return (num_samples - window) // hop + 1


@dataclass(frozen=True)
class FrameGrid:
    """Frames of `window` samples, one every `hop` samples."""

    window: int
    hop: int

    def num_frames(self, num_samples: int) -> int:
        """Whole frames in `num_samples` samples: 0 if not even one fits."""
        return max(0, frames_within(num_samples, self.window, self.hop))

    def num_samples(self, num_frames: int) -> int:
        """The fewest samples that hold `num_frames` frames (0 for 0)."""
        return self.window + (num_frames - 1) * self.hop if num_frames > 0 else 0


def conv_grid(conv_layers: Sequence[tuple[int, int, int]]) -> FrameGrid:
    """The frames that a stack of unpadded convolutions computes.

    Args:
        conv_layers: `(channels, kernel, stride)` of each, first to last.
    """
    window = hop = 1
    for _, kernel, stride in conv_layers:
        window += (kernel - 1) * hop
        hop *= stride
    return FrameGrid(window, hop)


def label_hop(label_rate: float, sample_rate: int = SAMPLE_RATE) -> int:
    """Samples from one label to the next.

    Raises:
        InputError: if `label_rate` (labels a second) does not divide `sample_rate`.
    """
    hop = sample_rate / label_rate if label_rate > 0 else 0.0
    if hop < 1 or hop != int(hop):
        raise InputError(
            f"label_rate {label_rate:g} does not divide the sample rate {sample_rate}: "
            "MFCC labels have 100, deep features 50"
        )
    return int(hop)


def frame_labels(num_frames: int, frame_hop: int, hop: int) -> np.ndarray:
    """For each model frame of a crop, which label of the crop is its target: `[num_frames]` int64.

    The label whose hop holds the frame's first sample, as in fairseq's `forward_targets`.

    Args:
        frame_hop: samples between model frames.
        hop: samples between labels, see `label_hop`.
    """
    return np.arange(num_frames, dtype=np.int64) * frame_hop // hop


def labels_fit(
    num_labels: int | np.ndarray,
    num_samples: int | np.ndarray,
    hop: int,
    sample_rate: int = SAMPLE_RATE,
) -> bool | np.ndarray:
    """Whether labels and audio end within `LENGTH_TOLERANCE` of each other, element-wise."""
    return abs(num_labels * hop - num_samples) <= LENGTH_TOLERANCE * sample_rate


def common_hop(first: int, second: int) -> int:
    """The least common multiple: a crop that starts on it starts on both grids."""
    return first * second // gcd(first, second)


def resampled_length(num_samples: int, rate: int, target_rate: int = SAMPLE_RATE) -> int:
    """Samples that `num_samples` at `rate` become at `target_rate` (rounded up)."""
    return ceil(num_samples * target_rate / rate)
