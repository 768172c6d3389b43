"""Mix crops within a batch: add a quieter crop, keep the units (WavLM, section 3.2; MERT).

The encoder must predict the louder music of the mix, as in music of many parts.
"""

from collections.abc import Sequence

import numpy as np
from torch import Tensor

LEVELS = (-20.0, -6.0)
"""dB, of the added crop relative to the other; uniform between them."""


def draw_gain(prob: float, rng: np.random.Generator) -> float:
    """Draw the amplitude ratio of the added crop: with probability `prob`, else 0 for none."""
    mixed, level = rng.random() < prob, rng.uniform(*LEVELS)
    return 10 ** (level / 20) if mixed else 0.0


def mix(sources: Sequence[Tensor], gains: Sequence[float]) -> list[Tensor]:
    """Add to each crop the crop before it in the batch, and to the first crop the last.

    The added crop is cut at the other's end; beyond a shorter one nothing is added. Silent crops
    stay silent.

    Args:
        sources: tensors `[T]` of any lengths.
        gains: ratios of the root mean squares; 0 leaves a crop as it is.
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
