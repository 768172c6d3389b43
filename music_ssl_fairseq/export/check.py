"""Whether an exported model computes what the original computes."""

from collections.abc import Sequence

import torch
from torch import Tensor

from music_ssl_fairseq.errors import InputError
from music_ssl_fairseq.frames import FrameGrid
from music_ssl_fairseq.modules.audio_encoder import AudioEncoder

TOLERANCE = 1e-4
"""Largest difference of two values; times the spread of their layer, where that is above 1."""


def waveforms(grid: FrameGrid) -> tuple[Tensor, Tensor]:
    """Three waveforms of noise of different lengths, padded to one.

    Returns:
        `[3, T]` float32, 0 where padded, and `[3, T]` bool, True for padding. No length is a whole
        number of frames.
    """
    generator = torch.Generator().manual_seed(0)
    lengths = torch.tensor([grid.num_samples(frames) + grid.hop - 1 for frames in (40, 29, 17)])
    noise = torch.randn(3, int(lengths.max()), generator=generator)
    padding_mask = torch.arange(noise.size(1)) >= lengths[:, None]
    return noise.masked_fill(padding_mask, 0.0), padding_mask


def real_frames(model: AudioEncoder, padding_mask: Tensor | None, num_frames: int) -> Tensor:
    """`[B or 1, frames]` bool: which frames are not padding."""
    padding = model.frame_padding(padding_mask, num_frames)
    return torch.ones(1, num_frames, dtype=torch.bool) if padding is None else ~padding


def compare(
    expected: Sequence[Tensor], found: Sequence[Tensor], where: str, real: Tensor | None = None
) -> float:
    """The largest difference between two lists of hidden states `[B, frames, D]`.

    Args:
        where: what was exported, for the message.
        real: `[B or 1, frames]` bool, the frames to compare; all by default.

    Raises:
        InputError: if it is above TOLERANCE, or there are not as many layers or frames.
    """
    largest = 0.0
    shapes = [tuple(x.shape) for x in expected], [tuple(x.shape) for x in found]
    if shapes[0] != shapes[1]:
        raise InputError(f"{where}: gives hidden states {shapes[1]} instead of {shapes[0]}")
    for layer, (a, b) in enumerate(zip(expected, found, strict=True)):
        difference = (a - b).abs() if real is None else (a - b).abs() * real.unsqueeze(-1)
        worst = float(difference.max())
        if not worst <= TOLERANCE * max(1.0, float(a.std())):
            raise InputError(
                f"{where}: not written, because its layer {layer} differs from the original's by "
                f"{worst:.1e}"
            )
        largest = max(largest, worst)
    return largest
