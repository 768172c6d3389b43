"""Dropout whose mask costs a few integer operations."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

GOLDEN = -1640531535  # 0x9E3779B1: 2**32 divided by the golden ratio, made odd


def draw_seeds(number: int, device: torch.device) -> Tensor:
    """Draw `[number]` int32 seeds for `hashed_dropout` from torch's generator."""
    return torch.randint(2**31 - 1, (number,), dtype=torch.int32, device=device)


def hashed(seeds: Sequence[Tensor]) -> Callable[[nn.Dropout, Tensor], Tensor]:
    """Return a function that applies dropout modules, one call per seed, by `hashed_dropout`."""
    left = iter(seeds)
    return lambda dropout, x: hashed_dropout(x, dropout.p, next(left))


def hashed_dropout(x: Tensor, p: float, seed: Tensor) -> Tensor:
    """Apply dropout whose mask is a hash of each element's position and a seed.

    torch's compiler runs a Philox generator per element, ten rounds for one number, which takes
    three times as long as the norm that it is fused with. A hash of 32 bits is random enough for
    dropout, and can be computed again in the backward pass instead of being kept.

    Args:
        x: any shape, of fewer than 2**31 elements.
        p: probability of a zero; the rest is divided by 1 - p.
        seed: int32, 0-d, a new one per call (`draw_seeds`).
    """
    if p == 0:
        return x
    index = torch.arange(x.numel(), dtype=torch.int32, device=x.device).view(x.shape)
    return torch.where(keep_mask(index, p, seed), x * (1 / (1 - p)), 0)


def keep_mask(index: Tensor, p: float, seed: Tensor) -> Tensor:
    """Return which elements are kept, by their number (int32): a share of 1 - p."""
    return scramble(index, seed) >= drop_threshold(p)


def scramble(index: Tensor, seed: Tensor) -> Tensor:
    """Hash int32 numbers: MurmurHash3's finaliser without its last shift.

    That shift improves the lowest bits, which hardly count in a comparison with a threshold.
    """
    h = (index ^ seed) * GOLDEN
    # The masks turn arithmetic shifts of int32 into logical ones.
    h = (h ^ ((h >> 16) & 0xFFFF)) * -2048144789  # 0x85EBCA6B
    return (h ^ ((h >> 13) & 0x7FFFF)) * -1028477387  # 0xC2B2AE35


def drop_threshold(p: float) -> int:
    """Return the smallest hash, of all int32 numbers, whose element is kept."""
    return min(round(p * 2**32), 2**32 - 1) - 2**31
