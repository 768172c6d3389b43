"""Change crops at random, keep the units: filters, and mixes with a quieter crop.

The encoder has to predict the units of the unfiltered music, so that timbre does not depend on one
recording's colour; and those of the louder crop (WavLM, section 3.2; MERT), as in music of many
parts. Levels are drawn with the crop. The task filters batches before it trains on them, on the GPU
if there is one, because loaders on a CPU are too slow for it.
"""

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from music_ssl_fairseq.frames import SAMPLE_RATE

_LOWEST_HZ = 62.5
_NUM_LEVELS = 8  # per octave from the lowest frequency to half the sampling rate
_MIX_DB = -20.0, -6.0  # of the added crop relative to the other; uniform between them


def draw_levels(decibels: float, rng: np.random.Generator) -> Tensor:
    """Draw a filter: `[levels]` float32, dB, uniform between plus and minus `decibels`."""
    return torch.from_numpy(rng.uniform(-decibels, decibels, _NUM_LEVELS).astype(np.float32))


@torch.no_grad()
def equalise(source: Tensor, levels: Tensor, padding_mask: Tensor | None = None) -> Tensor:
    """Multiply each crop's spectrum by its curve, and keep its power.

    Args:
        source: `[B, T]` waveforms.
        levels: `[B, levels]` dB, one per octave from 62.5 Hz. Between them the curve is linear in
            the logarithm of frequency.
        padding_mask: `[B, T]` bool, True where a sample is padding, which stays 0.

    Returns:
        `[B, T]`, of `source`'s type.
    """
    waveforms = source.float()
    gains = 10 ** (levels.float() @ _curves(source.shape[1], source.device) / 20)
    filtered = torch.fft.irfft(torch.fft.rfft(waveforms) * gains, source.shape[1])
    if padding_mask is not None:
        filtered = filtered.masked_fill(padding_mask, 0)
    smallest = torch.finfo(torch.float32).tiny
    power = waveforms.square().sum(1) / filtered.square().sum(1).clamp(min=smallest)
    return (filtered * power.sqrt()[:, None]).to(source.dtype)


@lru_cache(maxsize=4)
def _curves(samples: int, device: torch.device) -> Tensor:
    """Return what each level adds to the curve: `[levels, samples // 2 + 1]`, 0 to 1."""
    hertz = torch.fft.rfftfreq(samples, 1 / SAMPLE_RATE, device=device)
    octaves = torch.log2(hertz.clamp(min=_LOWEST_HZ) / _LOWEST_HZ)
    return (1 - (octaves - torch.arange(_NUM_LEVELS, device=device)[:, None]).abs()).clamp(min=0)


def draw_gain(prob: float, rng: np.random.Generator) -> float:
    """Draw the amplitude ratio of the added crop: with probability `prob`, else 0 for none."""
    mixed = rng.random() < prob
    level = rng.uniform(*_MIX_DB)
    return 10 ** (level / 20) if mixed else 0.0


def mix(sources: Sequence[Tensor], gains: Sequence[float]) -> list[Tensor]:
    """Add to each crop the crop before it in the batch, and to the first crop the last.

    The added crop is cut at the other's end; beyond a shorter one nothing is added. `gains` are
    ratios of the root mean squares: 0 leaves a crop as it is, and silent crops stay silent.
    """
    levels = [float(source.square().mean().sqrt()) for source in sources]
    mixed = []
    for i, (source, gain) in enumerate(zip(sources, gains, strict=True)):
        other = sources[i - 1][: len(source)]
        if gain > 0 and levels[i - 1] > 0:
            source = source.clone()
            source[: len(other)] += gain * levels[i] / levels[i - 1] * other
        mixed.append(source)
    return mixed
