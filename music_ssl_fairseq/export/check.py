"""Compare an exported model with the original, and save it."""

from collections.abc import Callable, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from music_ssl_fairseq.errors import InputError
from music_ssl_fairseq.frames import FrameGrid
from music_ssl_fairseq.modules.audio_encoder import AudioEncoder

TOLERANCE = 1e-4
"""Largest allowed difference of two values, times their layer's standard deviation if above 1."""


def waveforms(grid: FrameGrid) -> tuple[Tensor, Tensor]:
    """Return three waveforms of noise of different lengths, padded to the longest.

    Returns `[3, T]` float32, 0 where padded, and `[3, T]` bool, True for padding. No length is a
    whole number of frames.
    """
    generator = torch.Generator().manual_seed(0)
    lengths = torch.tensor([grid.num_samples(frames) + grid.hop - 1 for frames in (40, 29, 17)])
    noise = torch.randn(3, int(lengths.max()), generator=generator)
    padding_mask = torch.arange(noise.size(1)) >= lengths[:, None]
    return noise.masked_fill(padding_mask, 0.0), padding_mask


Run = Callable[[Tensor, Tensor | None], Sequence[Tensor]]
"""From waveforms `[B, T]` and their padding mask, or None, to hidden states `[B, frames, D]`."""


def compare_on_waveforms(model: AudioEncoder, ours: Run, theirs: Run, where: str) -> str:
    """Compare hidden states of `waveforms`, with and without padding; describe the difference."""
    waveform, padding_mask = waveforms(model.grid)
    largest = 0.0
    for padding in (None, padding_mask):
        with torch.no_grad():
            expected, found = ours(waveform, padding), theirs(waveform, padding)
        padded = model.frame_padding(padding, found[0].size(1))
        real = None if padded is None else ~padded
        largest = max(largest, compare(expected, found, where, real))
    return f"{len(found)} layers, with and without padding, differ by {largest:.1e} at most"


def compare(
    expected: Sequence[Tensor], found: Sequence[Tensor], where: str, real: Tensor | None = None
) -> float:
    """Return the largest difference between two lists of hidden states `[B, frames, D]`.

    Raises InputError if it is above TOLERANCE, or the numbers of layers or frames differ.

    Args:
        where: name of the export, for the message.
        real: `[B, frames]` bool, the frames to compare; all by default.
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


def save(what: Any, path: Path, by: Callable[[Any, Any], None] = torch.save) -> None:
    """Save through memory: on a full disk, torch's own writer ends the process.

    Raises OSError if the file cannot be written.
    """
    buffer = BytesIO()
    by(what, buffer)
    path.write_bytes(buffer.getbuffer())
