"""Convert between samples, model frames and labels.

Conventions. A *frame* `t` of a grid covers the samples `[t * hop, t * hop + window)`, and exists
only if all of them do (Kaldi's `snip_edges`, and what a convolution without padding computes). The
default extractor, at 16 kHz, has a window of 400 samples and a hop of 320: 50 frames per second.
MFCC frames have a window of 400 and a hop of 160. So model frame `t` covers exactly the samples of
MFCC frame `2 t`, and both start on multiples of 160 samples.
"""

import ast
import re
from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from music_ssl_fairseq.errors import InputError

SAMPLE_RATE = 16_000
"""Hz, of the input of every model of this package."""

LENGTH_TOLERANCE = 0.1
"""Seconds by which labels may end before or after their audio (fairseq's HubertDataset: 0.1)."""

DEFAULT_CONV_LAYERS = "[(512,10,5)] + [(512,3,2)] * 4 + [(512,2,2)] * 2"
"""The extractor of wav2vec 2.0, as fairseq writes it: (channels, kernel, stride) per layer."""

_MAX_CONV_LAYERS = 100
_CONV_LAYERS = re.compile(  # a list, times a number
    r"(?:(\d\d?)\s*\*\s*)?(\[[\d\s(),]{1,5000}\])\s*(?:\*\s*(\d\d?))?"
)


def frames_within(num_samples: Any, window: int, hop: int) -> Any:
    """Count the frames that lie within `num_samples`, element-wise; below 1 if not even one does.

    `num_samples` is an int, an array or a tensor of ints; `hop` is from one frame to the next.
    """
    return (num_samples - window) // hop + 1


def first_from(sample: Any, hop: int) -> Any:
    """Return the first frame that begins at `sample` or later, element-wise."""
    return -(-sample // hop)


def samples_in(seconds: float) -> int:
    """Return the number of samples in a duration, rounded."""
    return round(seconds * SAMPLE_RATE)


@dataclass(frozen=True)
class FrameGrid:
    """Frames of `window` samples, one every `hop` samples."""

    window: int
    hop: int

    @property
    def rate(self) -> float:
        """Frames per second."""
        return SAMPLE_RATE / self.hop

    def num_frames(self, num_samples: int) -> int:
        """Return the number of whole frames in `num_samples` samples."""
        return max(0, frames_within(num_samples, self.window, self.hop))

    def num_samples(self, num_frames: int) -> int:
        """Return the fewest samples that hold `num_frames` frames (0 for 0)."""
        return self.window + (num_frames - 1) * self.hop if num_frames > 0 else 0


def parse_conv_layers(text: str) -> list[tuple[int, int, int]]:
    """Parse fairseq's string: lists of `(channels, kernel, stride)`, times a number, joined by `+`.

    fairseq evaluates the string as Python. Checkpoints contain it, so here it is only read.

    Raises InputError if it is anything else.
    """
    layers: list[tuple[int, int, int]] = []
    try:
        for term in text.split("+"):
            found = _CONV_LAYERS.fullmatch(term.strip())
            if found is None or len(layers) > _MAX_CONV_LAYERS:
                raise ValueError
            layers += ast.literal_eval(found[2]) * int(found[1] or 1) * int(found[3] or 1)
        layers = [(int(dim), int(kernel), int(stride)) for dim, kernel, stride in layers]
        if not 0 < len(layers) <= _MAX_CONV_LAYERS or min(map(min, layers)) < 1:
            raise ValueError
        return layers
    except (ValueError, TypeError, SyntaxError, RecursionError, MemoryError):
        raise InputError(
            f"conv_feature_layers {text!r:.200}: expected a list of (channels, kernel, stride), "
            f"like {DEFAULT_CONV_LAYERS!r}"
        ) from None


def conv_grid(conv_layers: Sequence[tuple[int, int, int]]) -> FrameGrid:
    """Return the frames of unpadded convolutions, `(channels, kernel, stride)` per layer."""
    window = hop = 1
    for _, kernel, stride in conv_layers:
        window += (kernel - 1) * hop
        hop *= stride
    return FrameGrid(window, hop)


def label_hop(label_rate: float) -> int:
    """Return the number of samples from one label to the next.

    Raises InputError if `label_rate` (labels per second) does not divide the sample rate.
    """
    hop = SAMPLE_RATE / label_rate if label_rate > 0 else 0.0
    if hop < 1 or hop != int(hop):
        raise InputError(
            f"label_rate {label_rate:g} does not divide the sample rate {SAMPLE_RATE}: "
            "MFCC labels have 100, deep features 50"
        )
    return int(hop)


def frame_labels(num_frames: int, frame_hop: int, hop: int) -> np.ndarray:
    """Return the index of each model frame's label within its crop: `[num_frames]` int64.

    It is the label whose hop holds the frame's first sample, as in fairseq's `forward_targets`.
    `frame_hop` is of the model's frames, `hop` of the labels.
    """
    return np.arange(num_frames, dtype=np.int64) * frame_hop // hop


def labels_fit(
    num_labels: int | np.ndarray, num_samples: int | np.ndarray, hop: int
) -> bool | np.ndarray:
    """Tell whether labels and audio end within `LENGTH_TOLERANCE` of each other, element-wise."""
    return abs(num_labels * hop - num_samples) <= LENGTH_TOLERANCE * SAMPLE_RATE


def labelled_samples(num_labels: np.ndarray, hop: int, grid: FrameGrid) -> np.ndarray:
    """Return the number of samples up to which every whole frame has a label, element-wise.

    A frame's label is the one whose hop holds its first sample, so the last frame must begin before
    the labels end. Labels made of whole frames reach that far in any audio; others may end up to
    0.1 s early.
    """
    return num_labels * hop + grid.window - 1


def hours(num_samples: ArrayLike) -> float:
    """Return the duration of all samples together, in hours."""
    return float(np.sum(num_samples)) / SAMPLE_RATE / 3600


def counted(number: int, noun: str) -> str:
    """Format a number of things: `1 track`, `2,500 tracks`."""
    return f"{number:,} {noun}{'s' * (number != 1)}"


def amount(hours: float) -> str:
    """Format an amount of audio or time: `4.2 s`, `46.1 min`, `1,370 h`."""
    per_hour, unit = (1, "h") if hours >= 1 else (60, "min") if hours >= 1 / 60 else (3600, "s")
    value = hours * per_hour
    return f"{value:,.0f} {unit}" if value >= 100 else f"{value:.1f} {unit}"


def resampled_length(num_samples: int, rate: int, target_rate: int = SAMPLE_RATE) -> int:
    """Return the number of samples after resampling from `rate` to `target_rate` (rounded up)."""
    return ceil(num_samples * target_rate / rate)
