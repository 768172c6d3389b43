"""Dropout whose mask costs a few integer operations."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

_GOLDEN = -1640531535  # 0x9E3779B1: 2**32 divided by the golden ratio, made odd


def draw_seeds(number: int, device: torch.device) -> Tensor:
    """`[number]` int32 seeds for `hashed_dropout`, from torch's generator."""
    return torch.randint(2**31 - 1, (number,), dtype=torch.int32, device=device)


def hashed(seeds: Sequence[Tensor]) -> Callable[[nn.Dropout, Tensor], Tensor]:
    """Return a function that applies dropout modules, one call per seed, by `hashed_dropout`."""
    left = iter(seeds)
    return lambda dropout, x: hashed_dropout(x, dropout.p, next(left))


def hashed_dropout(x: Tensor, p: float, seed: Tensor) -> Tensor:
    """Dropout whose mask is a hash of each element's position and a seed.

    torch's compiler gives every element a Philox generator of its own, ten rounds for one number:
    that takes three times as long as the norm that it is fused with. A hash of 32 bits is random
    enough to leave out a tenth of the activations, and can be computed again in the backward pass
    instead of being kept.

    Args:
        x: any shape, of fewer than 2**31 elements.
        p: probability of a zero; the rest is divided by 1 - p.
        seed: int32, 0-d, a new one for each call (`draw_seeds`).
    """
    if p == 0:
        return x
    index = torch.arange(x.numel(), dtype=torch.int32, device=x.device).view(x.shape)
    return torch.where(keep_mask(index, p, seed), x * (1 / (1 - p)), 0)


def keep_mask(index: Tensor, p: float, seed: Tensor) -> Tensor:
    """Which elements are kept, by their number (int32): a share of 1 - p."""
    return scramble(index, seed) >= drop_threshold(p)


def keep_pairs(rows: Tensor, columns: Tensor, p: float, seed: Tensor) -> Tensor:
    """The same for a matrix, by the numbers of rows and columns, in three operations an element."""
    row, column = scramble(rows, seed), scramble(~columns, seed)
    return (row.unsqueeze(-1) ^ column) * _GOLDEN >= drop_threshold(p)


def scramble(index: Tensor, seed: Tensor) -> Tensor:
    """A random int32 for each int32: MurmurHash3's finaliser, but for a shift at its end.

    That would mend the lowest bits, which hardly count when a hash is compared with a threshold.
    """
    h = (index ^ seed) * _GOLDEN
    # Shifts of int32 bring in copies of the sign, which a logical shift does not.
    h = (h ^ ((h >> 16) & 0xFFFF)) * -2048144789  # 0x85EBCA6B
    return (h ^ ((h >> 13) & 0x7FFFF)) * -1028477387  # 0xC2B2AE35


def drop_threshold(p: float) -> int:
    """Hashes from this one on, of all int32 numbers, are kept."""
    return min(round(p * 2**32), 2**32 - 1) - 2**31
