"""Dropout whose mask costs a few integer operations."""

import torch
from torch import Tensor

_LARGEST = 2**31 - 1


def draw_seeds(number: int, device: torch.device) -> Tensor:
    """`[number]` int32 seeds for `hashed_dropout`, from torch's generator."""
    return torch.randint(_LARGEST, (number,), dtype=torch.int32, device=device)


def hashed_dropout(x: Tensor, p: float, seed: Tensor) -> Tensor:
    """Dropout whose mask is a hash of each element's position and a seed.

    torch's compiler gives every element a Philox generator of its own, ten rounds for one number:
    that takes three times as long as the norm that it is fused with. A hash of 32 bits
    (MurmurHash3's finaliser, twice over the seed) is random enough to leave out a tenth of the
    activations, and can be computed again in the backward pass instead of being kept.

    Args:
        x: any shape, of fewer than 2**31 elements.
        p: probability of a zero; the rest is divided by 1 - p.
        seed: int32, 0-d, a new one for each call (`draw_seeds`).
    """
    h = torch.arange(x.numel(), dtype=torch.int32, device=x.device).view(x.shape)
    h = _mix(_mix(h ^ seed) + seed)
    keep = (h & _LARGEST) >= int(p * _LARGEST)
    return torch.where(keep, x * (1 / (1 - p)), 0)


def _mix(h: Tensor) -> Tensor:
    # Shifts of int32 bring in copies of the sign, which a logical shift does not.
    h = (h ^ ((h >> 16) & 0xFFFF)) * -2048144789  # 0x85EBCA6B
    h = (h ^ ((h >> 13) & 0x7FFFF)) * -1028477387  # 0xC2B2AE35
    return h ^ ((h >> 16) & 0xFFFF)
