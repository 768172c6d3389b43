"""Adam for an encoder that is trained along with a head, each layer at its own rate."""

from collections.abc import Sequence

import torch
from torch import Tensor

SHARE = "share_of_rate"
"""Attribute of an encoder's parameters: their learning rate as a share of the head's."""


class EncoderAdam(torch.optim.Adam):
    """torch's Adam for parameters with a `SHARE`; rates fall with the head's."""

    def __init__(self, parameters: Sequence[Tensor], betas: tuple[float, float], eps: float):
        self._shares = sorted({getattr(p, SHARE) for p in parameters})
        groups = [
            {"params": [p for p in parameters if getattr(p, SHARE) == share]}
            for share in self._shares
        ]
        super().__init__(groups, betas=betas, eps=eps)

    def gradients(self) -> list[Tensor]:
        """Return the gradients that there are: none while the encoder is frozen."""
        parameters = (p for group in self.param_groups for p in group["params"])
        return [p.grad for p in parameters if p.grad is not None]

    def clip(self, max_norm: float, scale: float) -> Tensor:
        """Bound the norm of the gradients times `scale`, unless `max_norm` is 0; return it."""
        gradients = self.gradients()
        if not gradients:
            return torch.zeros(())
        norm = torch.nn.utils.get_total_norm(gradients) * scale
        if max_norm > 0:
            torch._foreach_mul_(gradients, (max_norm / (norm + 1e-6)).clamp(max=1.0))
        return norm

    def update(self, rate: float, scale: float) -> None:
        """Update at shares of the head's `rate`, with gradients times `scale`."""
        gradients = self.gradients()
        if gradients:
            torch._foreach_mul_(gradients, scale)
        for group, share in zip(self.param_groups, self._shares, strict=True):
            group["lr"] = rate * share
        self.step()
