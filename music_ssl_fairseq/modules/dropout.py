"""Dropout that an execution may replace: models call what they are given as `drop`."""

from collections.abc import Callable

from torch import Tensor, nn

Drop = Callable[[nn.Dropout, Tensor], Tensor]
"""Applies a dropout module."""


def drop(dropout: nn.Dropout, x: Tensor) -> Tensor:
    """Apply a dropout module, with torch's random numbers."""
    return dropout(x)
