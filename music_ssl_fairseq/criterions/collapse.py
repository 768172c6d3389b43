"""Noticing that musicHuBERT learns nothing while its features vanish."""

import logging

import torch
from torch import Tensor

logger = logging.getLogger(__name__)

WINDOW = 500
"""Updates over which accuracy and penalty are averaged before they are judged."""


class CollapseWatch:
    """Warns, once a window, when masked accuracy sits on the majority baseline as features shrink.

    This is what too high a learning rate looks like (fairseq issue 5534): the feature penalty
    drives the extractor's output to zero, every frame looks alike, and the loss stays at the
    entropy of the labels. Sums are kept on the device, so that only a window's end waits for it.
    """

    def __init__(self) -> None:
        self.updates = 0
        self.first_penalty: float | None = None
        self._clear()

    def _clear(self) -> None:
        self.correct: Tensor | float = 0.0
        self.frames = 0
        self.penalty: Tensor | float = 0.0
        self.units: Tensor | float = 0.0

    @torch.no_grad()
    def update(self, correct: Tensor, frames: int, penalty: Tensor, units: Tensor) -> str | None:
        """Add one update; return the warning, if it is one, which is logged as well.

        Args:
            correct: masked frames whose unit was predicted.
            frames: masked frames.
            penalty: mean square of the extractor's features.
            units: `[classes]` how often each unit was the target.
        """
        self.correct = self.correct + correct
        self.frames += frames
        self.penalty = self.penalty + penalty.detach()
        self.units = self.units + units
        self.updates += 1
        if self.updates % WINDOW:
            return None
        assert isinstance(self.units, Tensor)
        accuracy = float(self.correct) / self.frames
        majority = float(self.units.max()) / self.frames
        mean_penalty = float(self.penalty) / WINDOW
        self._clear()
        if self.first_penalty is None:
            self.first_penalty = mean_penalty
        shrunk = mean_penalty < 0.1 * self.first_penalty
        if not (shrunk and accuracy < 1.2 * majority):
            return None
        message = (
            f"collapsing? masked accuracy {accuracy:.2%} is that of always naming the commonest "
            f"unit ({majority:.2%}), and the features' mean square fell from "
            f"{self.first_penalty:.3g} to {mean_penalty:.3g}: try a lower optimization.lr, more "
            "lr_scheduler.warmup_updates, or criterion.features_pen_weight=0"
        )
        logger.warning(message)
        return message
