"""Measure the loudness of whole waveforms, for encoders that take them in windows.

The waveform's normalisation and the extractor's group norm are linear once their statistics are
known. With the statistics of a whole section, the extractor's output on each window equals, to
rounding, its output on the section.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from music_ssl_fairseq.fast.dispatch import fold_moments, window_moments
from music_ssl_fairseq.modules.audio_encoder import AudioEncoder
from music_ssl_fairseq.modules.conv_extractor import ConvLayer


@dataclass(frozen=True, eq=False)
class Statistics:
    """Statistics of B waveforms."""

    mean: Tensor  # `[B, 1]`
    scale: Tensor  # `[B, 1]`; the extractor's input is `(waveform - mean) * scale`
    # Filters `[B, C, kernel]` and shifts `[B, C]` of the first convolution with its group norm;
    # None for an extractor with layer norms
    folded: tuple[Tensor, Tensor] | None

    def normalise(self, waveform: Tensor) -> Tensor:
        """Return the extractor's input for `[B, T]`."""
        return (waveform - self.mean) * self.scale


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
