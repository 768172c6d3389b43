"""Dropout as a function, which `fast` replaces by one that suits compiled kernels."""

from collections.abc import Callable

from torch import Tensor, nn

Drop = Callable[[nn.Dropout, Tensor], Tensor]


def drop(dropout: nn.Dropout, x: Tensor) -> Tensor:
    """Apply a dropout module, with torch's random numbers."""
    return dropout(x)
