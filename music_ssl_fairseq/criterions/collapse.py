"""Detection of a collapsed model: its outputs are the same at every frame, whatever the music.

The watches read the sums that each update logs, without a GPU sync. Every model begins with equal
outputs at all frames, for a time that depends on the schedule. So a model that has learned nothing
yet is not judged before the learning rate has reached its peak.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

PATIENCE_UPDATES = 300
"""Updates after the warm-up for which a collapse must last. Healthy short runs leave this state
within their warm-up, after some 150 updates."""

WINDOW_UPDATES = 50
"""Updates over which accuracy and perplexities are averaged."""

_MIN_ENTROPY_SHARE = 0.15
"""Entropy of predicted units, as a share of the targets', below which one unit dominates: with 460
units in use, a perplexity of 2.5."""

_GRACE_UPDATES = 5000
"""Updates in which predictions may have a small variance (data2vec's)."""

_CHECK_INTERVAL_UPDATES = 100
_MAX_POSITION_SHARE = 0.7


def schedule_of(task: Any) -> tuple[int, str]:
    """Return a task's warm-up, in updates, and the advice to give after a collapse."""
    return getattr(task, "warmup", 0), getattr(task, "advice", "Lower the learning rate")


def warmup_updates(cfg: Any) -> int:
    """Return the number of updates until the learning rate is at its peak, from fairseq's `cfg`."""
    scheduler = cfg.lr_scheduler
    ratio = scheduler.get("phase_ratio")
    if ratio:
        return int(ratio[0] * cfg.optimization.max_update)
    return int(scheduler.get("warmup_updates") or scheduler.get("warmup_steps") or 0)


def collapse_advice(cfg: Any) -> str:
    """Return the two settings to change after a collapse, with values that have helped."""
    scheduler = cfg.lr_scheduler
    rate = cfg.optimization.lr[0]
    warmup = warmup_updates(cfg)
    if scheduler.get("phase_ratio"):
        longer = f"a larger first lr_scheduler.phase_ratio (now {scheduler.phase_ratio[0]:g})"
    else:
        name = "warmup_steps" if "warmup_steps" in scheduler else "warmup_updates"
        longer = f"lr_scheduler.{name}={2 * warmup or 300} (now {warmup})"
    return (
        f"Start again with a lower rate and a longer warm-up, for instance optimization.lr="
        f"[{rate / 3:.2g}] (now {rate:g}) and {longer}, in another hydra.run.dir; "
        "criterion.stop_if_collapsed=false trains on"
    )


@dataclass
class Patience:
    """Decides when a state that may pass has lasted too long."""

    start: int  # the update from which on the state counts
    patience: int  # updates that it may last
    _since: int | None = None
    _reported: bool = False

    def exhausted(self, update: int, bad: bool, learned: bool = False) -> bool:
        """Return whether the state has just lasted too long: True once, until it has passed.

        Args:
            bad: whether the model is in the state at this update.
            learned: whether the model has done better. From then on `start` no longer matters.
        """
        if learned:
            self.start = 0
        if not bad:
            self._since, self._reported = None, False
            return False
        if update < self.start or self._reported:
            return False
        if self._since is None:
            self._since = update
        self._reported = update - self._since >= self.patience
        return self._reported


class UnitWatch:
    """Watches musicHuBERT: predictions of nearly one unit, no more accurate than naming it always.

    This follows from too high a learning rate (fairseq issue 5534): the loss stays at the entropy
    of the labels. Features need not shrink, and do not without their penalty. `warmup` and `advice`
    are those of `schedule_of`.
    """

    def __init__(self, warmup: int, advice: str):
        self._patience = Patience(warmup, PATIENCE_UPDATES)
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

        Several label sets are judged together: one that is learned is enough.

        Args:
            correct: masked frames whose unit was predicted, summed over the label sets.
            frames: masked frames.
            pred: per label set, `[classes]` how often each unit was predicted; on the CPU.
            target: per label set, `[classes]` how often each unit was the target.

        Returns:
            One line, once per collapse; else None.
        """
        self._updates += 1
        self._correct += correct / len(target)
        self._frames += frames
        for number, counts in enumerate(target):
            self._targets[number] = self._targets.get(number, 0.0) + counts
        # Per update, because a collapsed model's one unit may change from time to time.
        for name, histograms in (("pred", pred), ("target", target)):
            self._entropy[name] += sum(map(entropy, histograms)) / len(histograms)
        if self._updates < WINDOW_UPDATES or not self._frames:
            return None
        accuracy = self._correct / self._frames
        most = [float(torch.as_tensor(counts).max()) for counts in self._targets.values()]
        majority = sum(most) / len(most) / self._frames
        predicted, expected = (
            self._entropy[which] / WINDOW_UPDATES for which in ("pred", "target")
        )
        self._clear()
        above = (accuracy - majority) / max(majority * (1 - majority), 1e-12)
        collapsed = predicted < _MIN_ENTROPY_SHARE * expected and above < 0.1
        if not self._patience.exhausted(update, collapsed, above > 0.5):
            return None
        return (
            f"collapsed: at update {update} the predictions' perplexity is "
            f"{math.exp(predicted):.3g} (the labels' {math.exp(expected):.3g}), and masked "
            f"accuracy {accuracy:.2%} is that of always naming the most frequent unit "
            f"({majority:.2%}). "
            f"{self._advice}"
        )


class SpreadWatch:
    """Watches music2vec: targets or predictions without spread, or targets of position alone.

    `warmup` and `advice` are from `schedule_of`; `minimum` is the smallest healthy standard
    deviation of `target` and of `pred`.
    """

    def __init__(self, warmup: int, advice: str, minimum: dict[str, float]):
        self._advice = advice
        self._minimum = minimum
        self._position = Patience(warmup, PATIENCE_UPDATES)
        early = min(_GRACE_UPDATES, warmup + PATIENCE_UPDATES)
        self._small = {"target": Patience(early, 0), "pred": Patience(_GRACE_UPDATES, 0)}

    @staticmethod
    def due(update: int) -> bool:
        """Return whether this update is to be judged."""
        return update > 0 and update % _CHECK_INTERVAL_UPDATES == 0

    def update(self, update: int, deviation: dict[str, float], position: float) -> str | None:
        """Judge an update; return one line, once per collapse, or else None.

        Args:
            deviation: the standard deviation over frames of `target` and of `pred`.
            position: the share of the targets' variance that a frame's position explains.
        """
        signs = [
            f"{name}_var is {value:.4f}, below criterion.min_{name}_var={self._minimum[name]:g}"
            for name, value in deviation.items()
            if self._small[name].exhausted(update, value < self._minimum[name])
        ]
        if self._position.exhausted(update, position > _MAX_POSITION_SHARE):
            signs.append(
                f"a frame's position in its crop explains {position:.0%} of the targets' variance "
                "(target_position), and the music next to nothing"
            )
        if not signs:
            return None
        return f"collapsed: at update {update} {' and '.join(signs)}. {self._advice}"


def entropy(counts: Tensor) -> float:
    """Compute the entropy of a histogram, in nats."""
    share = counts.double() / counts.sum().clamp(min=1)
    return -float(torch.special.xlogy(share, share).sum())
