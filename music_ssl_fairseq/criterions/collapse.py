"""Noticing that a model has collapsed: it says the same of every frame, whatever the music.

What is watched are the sums that each update logs, so that nothing waits for the GPU. Before the
learning rate has reached its peak there is no verdict on a model that has learned nothing yet:
every model begins by saying the same of every frame, for a time that depends on the schedule.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

PATIENCE = 300
"""Updates of collapse, after the warm-up, that decide. Healthy short runs leave the baseline within
their warm-up, after some 150 updates."""

WINDOW = 50
"""Updates over which accuracy and perplexities are taken."""

_FEW = 0.15
"""Entropy of the predicted units, as a share of that of the targets, below which they are one unit
and exceptions: with 460 units in use, a perplexity of 2.5."""

_GRACE = 5000
"""Updates: data2vec's, before which predictions may be of small variance."""

_CHECK_EVERY = 100
_MUCH_POSITION = 0.7


def schedule_of(task: Any) -> tuple[int, str]:
    """A pre-training task's warm-up, in updates, and which settings to change after a collapse."""
    return getattr(task, "warmup", 0), getattr(task, "advice", "Lower the learning rate")


class Patience:
    """Decides when a state that may pass has lasted too long.

    Args:
        start: the update before which the state is no reason to worry.
        patience: updates that it may last from then on.
    """

    def __init__(self, start: int, patience: int):
        self._start = start
        self._patience = patience
        self._since: int | None = None
        self._said = False

    def exhausted(self, update: int, bad: bool, learned: bool = False) -> bool:
        """Whether the state has now lasted too long; said once, until it has passed.

        Args:
            update: the present one.
            bad: whether the state holds at present.
            learned: the model has shown that it can do better, so that `start` is no excuse.
        """
        if learned:
            self._start = 0
        if not bad:
            self._since, self._said = None, False
        if not bad or update < self._start or self._said:
            return False
        if self._since is None:
            self._since = update
        self._said = update - self._since >= self._patience
        return self._said


class UnitWatch:
    """Watches musicHuBERT: predictions of nearly one unit, no more accurate than always naming it.

    This is what too high a learning rate looks like (fairseq issue 5534): the loss stays at the
    entropy of the labels. Features need not shrink for it, and without their penalty do not.

    Args:
        warmup: updates until the learning rate has its peak.
        advice: which settings to change.
    """

    def __init__(self, warmup: int, advice: str):
        self._patience = Patience(warmup, PATIENCE)
        self._advice = advice
        self._clear()

    def _clear(self) -> None:
        self._updates = 0
        self._correct = self._frames = 0.0
        self._entropy = {"pred": 0.0, "target": 0.0}
        self._targets: dict[int, Tensor | float] = {}

    def update(
        self,
        update: int,
        correct: float,
        frames: float,
        pred: Sequence[Tensor],
        target: Sequence[Tensor],
    ) -> str | None:
        """Add an update; at the end of a window, judge it.

        Several label sets are judged together: one that is learned keeps the model alive.

        Args:
            update: its number.
            correct: masked frames whose unit was predicted, summed over the label sets.
            frames: masked frames.
            pred: of each label set, `[classes]` how often each unit was predicted; on the CPU.
            target: of each, `[classes]` how often each unit was the target.

        Returns:
            One line, if the run has collapsed and that was not said yet; else None.
        """
        self._updates += 1
        self._correct += correct / len(target)
        self._frames += frames
        for number, counts in enumerate(target):
            self._targets[number] = self._targets.get(number, 0.0) + counts
        # Of each update by itself: a collapsed model may name another unit from time to time.
        for name, histograms in (("pred", pred), ("target", target)):
            self._entropy[name] += sum(map(_entropy, histograms)) / len(histograms)
        if self._updates < WINDOW or not self._frames:
            return None
        accuracy = self._correct / self._frames
        most = [float(torch.as_tensor(counts).max()) for counts in self._targets.values()]
        majority = sum(most) / len(most) / self._frames
        predicted, wanted = (self._entropy[which] / WINDOW for which in ("pred", "target"))
        self._clear()
        above = (accuracy - majority) / max(majority * (1 - majority), 1e-12)
        collapsed = predicted < _FEW * wanted and above < 0.1
        if not self._patience.exhausted(update, collapsed, above > 0.5):
            return None
        return (
            f"collapsed: at update {update} the predictions' perplexity is "
            f"{math.exp(predicted):.3g} (the labels' {math.exp(wanted):.3g}), and masked accuracy "
            f"{accuracy:.2%} is that of always naming the most frequent unit ({majority:.2%}). "
            f"{self._advice}"
        )


class SpreadWatch:
    """Watches music2vec: targets or predictions without spread, or that tell time and no music.

    Args:
        warmup: updates until the learning rate has its peak.
        advice: which settings to change.
        minimum: of `target` and `pred`, the smallest healthy standard deviation.
    """

    def __init__(self, warmup: int, advice: str, minimum: dict[str, float]):
        self._advice = advice
        self._minimum = minimum
        self._position = Patience(warmup, PATIENCE)
        early = min(_GRACE, warmup + PATIENCE)
        self._small = {"target": Patience(early, 0), "pred": Patience(_GRACE, 0)}

    @staticmethod
    def due(update: int) -> bool:
        """Whether this update is one of those that are looked at."""
        return update > 0 and update % _CHECK_EVERY == 0

    def update(self, update: int, deviation: dict[str, float], position: float) -> str | None:
        """Judge an update.

        Args:
            update: its number.
            deviation: of `target` and `pred`, the standard deviation over frames.
            position: the share of the targets' variance that a frame's position explains.

        Returns:
            One line, if the run has collapsed and that was not said yet; else None.
        """
        signs = [
            f"{name}_var is {value:.4f}, below criterion.min_{name}_var={self._minimum[name]:g}"
            for name, value in deviation.items()
            if self._small[name].exhausted(update, value < self._minimum[name])
        ]
        if self._position.exhausted(update, position > _MUCH_POSITION):
            signs.append(
                f"a frame's position in its crop explains {position:.0%} of the targets' variance "
                "(target_position), and the music next to nothing"
            )
        if not signs:
            return None
        return f"collapsed: at update {update} {' and '.join(signs)}. {self._advice}"


def _entropy(counts: Tensor) -> float:
    """Of a histogram, in nats."""
    share = counts.double() / counts.sum().clamp(min=1)
    return -float(torch.special.xlogy(share, share).sum())
