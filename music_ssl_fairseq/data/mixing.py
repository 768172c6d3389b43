"""In-batch mixing: a quieter other crop is added, and the units stay (WavLM, section 3.2; MERT).

The encoder has to find the louder music in the mix, as it will have to in music of many parts.
"""

from collections.abc import Sequence

import numpy as np
from torch import Tensor

LEVELS = (-20.0, -6.0)
"""dB, of the added crop relative to the other; uniform between them."""


def draw_gain(prob: float, rng: np.random.Generator) -> float:
    """The amplitude ratio at which another crop is added: 0, for none, except with `prob`."""
    mixed, level = rng.random() < prob, rng.uniform(*LEVELS)
    return 10 ** (level / 20) if mixed else 0.0


def mix(sources: Sequence[Tensor], gains: Sequence[float]) -> list[Tensor]:
    """Add to each crop the one before it in the batch, to the first the last.

    A longer crop is cut at the other's end; of a shorter one the rest stays as it is. To a silent
    crop nothing is added.

    Args:
        sources: `[T]` each, of any lengths.
        gains: ratio of the root mean squares; 0 to leave a crop alone.
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
