"""How loud a whole is, for encoders that hear it in parts.

The waveform's normalisation and the extractor's group norm are linear once their statistics are
known. Taken over a whole section and given to each of its windows, they make the extractor's
output the same, to rounding, as if it had heard the section at once.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from music_ssl_fairseq.fast.dispatch import fold_moments
from music_ssl_fairseq.modules.audio_encoder import AudioEncoder
from music_ssl_fairseq.modules.conv_extractor import ConvLayer

_BLOCK = 4096  # windows


@dataclass(frozen=True, eq=False)
class Statistics:
    """Of B waveforms.

    Attributes:
        mean: `[B, 1]`, and
        scale: `[B, 1]`: `(waveform - mean) * scale` is what the extractor hears.
        folded: filters `[B, C, kernel]` and shifts `[B, C]` of the first convolution with its group
            norm; None for an extractor with layer norms, which need nothing of this kind.
    """

    mean: Tensor
    scale: Tensor
    folded: tuple[Tensor, Tensor] | None

    def normalise(self, waveform: Tensor) -> Tensor:
        """What the extractor hears of `[B, T]`."""
        return (waveform - self.mean) * self.scale


def joined(statistics: Sequence[Statistics]) -> Statistics:
    """Of all their waveforms."""
    folded = [one.folded for one in statistics if one.folded is not None]
    return Statistics(
        torch.cat([one.mean for one in statistics]),
        torch.cat([one.scale for one in statistics]),
        (torch.cat([f for f, _ in folded]), torch.cat([s for _, s in folded])) if folded else None,
    )


@torch.no_grad()
def measure(model: AudioEncoder, waveform: Tensor, normalise: bool) -> Statistics:
    """Measure waveforms `[B, T]`, on the model's device.

    Args:
        normalise: whether the model hears them with zero mean and unit variance.
    """
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
    heard = (waveform - mean) * scale
    conv = first.conv
    # A bias of the convolution would be taken off again with the mean.
    moments = _moments(heard, conv.weight.size(-1), conv.stride[0])
    folded = fold_moments(*moments, conv.weight, norm.weight, norm.bias, norm.eps)
    return Statistics(mean, scale, folded)


def _moments(waveform: Tensor, kernel: int, stride: int) -> tuple[Tensor, Tensor]:
    """The mean window `[B, kernel]` and the windows' mean products `[B, kernel, kernel]`.

    Block by block: one product of so long and thin matrices would keep a GPU's units waiting.
    """
    windows = waveform.double().unfold(-1, kernel, stride)
    batch, count, _ = windows.shape
    full = count // _BLOCK
    blocks = windows[:, : full * _BLOCK].reshape(batch * full, _BLOCK, kernel)
    rest = windows[:, full * _BLOCK :]
    products = (blocks.transpose(1, 2) @ blocks).view(batch, full, kernel, kernel).sum(1)
    products = products + rest.transpose(1, 2) @ rest
    return windows.mean(1), products / count
