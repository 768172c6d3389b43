"""A probe: the grid of heads in training; afterwards the head chosen on validation."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from fairseq.models import BaseFairseqModel
from torch import Tensor

from music_ssl_fairseq.compat import one_line_errors
from music_ssl_fairseq.errors import InputError
from music_ssl_fairseq.probing.config import HeadGridConfig
from music_ssl_fairseq.probing.heads.plateau import HeadSchedule
from music_ssl_fairseq.probing.heads.probe_heads import MIXED, PARAMETERS, Head, ProbeHeads, grid
from music_ssl_fairseq.runtime.user_command import with_setting


@dataclass(frozen=True)
class HeadInputs:
    """The features and outputs of all heads."""

    layer_names: Sequence[str]  # of the layers in the features
    dimension: int  # values of each layer
    num_outputs: int  # logits, or numbers of a regression
    fingerprint: str  # of the upstream, hex
    feature_mean: Tensor  # `[layers, dimension]`; features are standardised by these two
    feature_deviation: Tensor
    target_mean: Tensor  # `[outputs]`; a regression's targets are normalised by these two
    target_deviation: Tensor


@dataclass(frozen=True)
class ChosenHead:
    """The head with the best validation score."""

    head: Head
    score: float
    epoch: int


class HeadGrid(BaseFairseqModel):
    """All heads of the grid, their schedule, and the best head's parameters so far.

    Only the best state of the best head is kept, in `chosen_*`. Another head can be chosen later
    only by a new best score of its own. A head that stops leaves the batched module.
    """

    active: Tensor
    chosen: Tensor
    fingerprint: Tensor

    def __init__(self, cfg: HeadGridConfig, inputs: HeadInputs):
        super().__init__()
        self.grid = grid(_layers(cfg, inputs.layer_names), cfg.learning_rates)  # all heads
        sizes = inputs.dimension, cfg.hidden_size, inputs.num_outputs
        self.heads = ProbeHeads(self.grid, inputs.layer_names, *sizes, cfg.dropout, cfg.seed)
        rates = [head.learning_rate for head in self.grid]
        self.schedule = HeadSchedule(rates, cfg.patience, cfg.lr_patience, cfg.lr_factor)
        self.register_buffer("active", torch.arange(len(self.grid)))
        self.register_buffer("chosen", torch.tensor(-1))
        digest = list(bytes.fromhex(inputs.fingerprint))
        self.register_buffer("fingerprint", torch.tensor(digest, dtype=torch.uint8))
        for name in ("feature_mean", "feature_deviation", "target_mean", "target_deviation"):
            self.register_buffer(name, getattr(inputs, name))
        for name, value in self.heads.state(0).items():
            self.register_buffer(f"chosen_{name}", value)
        self.scoring = False  # whether `forward` runs the chosen head alone
        self._holds_chosen = False
        self._standardises: bool | None = None
        self._fingerprint = inputs.fingerprint
        self._upstream = cfg.upstream
        self._updates = 0
        self._draws = 0

    def half(self) -> "HeadGrid":
        """Refuse fairseq-validate's --fp16: features are fp32."""
        with one_line_errors():
            raise InputError("a probe computes in fp32: leave out --fp16")

    def set_num_updates(self, num_updates: int) -> None:
        """Note the number of the next update, from which its dropout follows."""
        self._updates, self._draws = num_updates, 0

    def forward(self, features: Tensor) -> Tensor:
        """Map features `[N, layers, D]` to logits `[heads, N, outputs]`.

        The heads are those in training, or, if `scoring`, the chosen one.
        """
        features = self._standardised(features.float())
        if self.scoring:
            self._hold_chosen()
        if not self.training:
            return self.heads(features)
        # Each mini-batch of a sample has its own dropout.
        draw = self._updates * 1000 + self._draws
        self._draws += 1
        return self.heads(features, draw)

    def _standardised(self, features: Tensor) -> Tensor:
        if self._standardises is None:
            means, deviations = self.feature_mean, self.feature_deviation
            self._standardises = bool((means != 0).any() or (deviations != 1).any())
        if not self._standardises:
            return features
        return (features - self.feature_mean) / self.feature_deviation

    def _hold_chosen(self) -> None:
        if not self._holds_chosen:
            self.heads.resize([self.grid[int(self.chosen)]])
            for name in PARAMETERS:
                getattr(self.heads, name).data = getattr(self, f"chosen_{name}").clone()
            self._holds_chosen = True

    def normalised_target(self, target: Tensor) -> Tensor:
        """Normalise a regression's targets by the training split's mean and deviation: float32.

        Double precision inside: a target may vary little around a large mean.
        """
        return ((target.double() - self.target_mean) / self.target_deviation).float()

    def in_units(self, outputs: Tensor) -> Tensor:
        """Undo `normalised_target`: outputs in the labels' units, float64."""
        return outputs.double() * self.target_deviation + self.target_mean

    def learning_rates(self) -> list[float]:
        """Return the present learning rates of the heads in training."""
        return self.schedule.learning_rate[self.active].tolist()

    @torch.no_grad()
    def take_scores(self, scores: Tensor, epoch: int, last: bool = False) -> None:
        """Judge a validation: keep the best head's state, lower rates, stop heads.

        `scores` are `[heads in training]`, higher is better. The `last` epoch stops all heads.
        """
        best_before = self.best_score()
        improved, stopped = self.schedule.update(self.active, scores, epoch)
        gained = torch.where(improved, scores.to(self.schedule.best_score), -torch.inf)
        best = int(gained.argmax())
        if gained[best] > best_before:
            self.chosen.fill_(self.active[best])
            for name, value in self.heads.state(best).items():
                getattr(self, f"chosen_{name}").copy_(value)
        stopped |= last
        if stopped.any():
            kept = (~stopped).nonzero().squeeze(1)
            self.heads.keep(kept.tolist())
            self.active = self.active[kept.to(self.active.device)]

    def best_score(self) -> float:
        """Return the chosen head's validation score; minus infinity before there is one."""
        chosen = int(self.chosen)
        return -float("inf") if chosen < 0 else float(self.schedule.best_score[chosen])

    def chosen_head(self) -> ChosenHead | None:
        """Return the head to be scored; None before the first validation."""
        index = int(self.chosen)
        if index < 0:
            return None
        return ChosenHead(self.grid[index], self.best_score(), int(self.schedule.best_epoch[index]))

    def table(self) -> list[dict[str, Any]]:
        """Describe each head of the grid, one line of `rows.csv` each."""
        schedule, chosen = self.schedule, int(self.chosen)
        columns = schedule.best_score, schedule.best_epoch, schedule.epochs
        lines = zip(self.grid, *(column.tolist() for column in columns), strict=True)
        return [
            {
                "layer": head.layer,
                "learning_rate": head.learning_rate,
                "score": score,
                "best_epoch": best_epoch,
                "epochs": epochs,
                "chosen": i == chosen,
            }
            for i, (head, score, best_epoch, epochs) in enumerate(lines)
        ]

    def load_state_dict(self, state_dict: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        """Load a probe, in training or finished.

        Raises InputError if it was trained on another upstream or another grid.
        """
        with one_line_errors():
            self._check(state_dict)
            self.active = state_dict["active"].clone().to(self.active.device)
            self.heads.resize([self.grid[i] for i in self.active.tolist()])
            self._holds_chosen, self._standardises = False, None
            return super().load_state_dict(state_dict, *args, **kwargs)

    def _check(self, state: dict[str, Any]) -> None:
        if "fingerprint" not in state:
            raise InputError("this checkpoint is no music_probe")
        found = bytes(state["fingerprint"].tolist()).hex()
        if found != self._fingerprint:
            raise InputError(
                f"the probe was trained on another upstream than {self._upstream}: fingerprint "
                f"{found[:12]} instead of {self._fingerprint[:12]}; give the one it was trained on "
                "(--upstream FILE), or train again in another hydra.run.dir"
            )
        count = len(state["schedule.best_score"])
        if count != len(self.grid):
            raise InputError(
                f"the checkpoint has {count} heads, the configuration {len(self.grid)}: use the "
                "same model.layers and model.learning_rates, or another hydra.run.dir"
            )


def _layers(cfg: HeadGridConfig, available: Sequence[str]) -> list[str]:
    """Return the names of the layers to probe, in the order of `model.layers`."""
    mixed = [MIXED] if len(available) > 2 else []
    if cfg.layers is None:
        return [*available, *mixed]
    wanted = [name.strip() for name in str(cfg.layers).split(",")]
    unknown = [name for name in wanted if name not in available and name not in mixed]
    if unknown:
        layers = ",".join(name for name in wanted if name not in unknown) or available[-1]
        raise InputError(
            f"model.layers: no layer {unknown[0]!r}; {cfg.upstream} has "
            f"{', '.join([*available, *mixed])}",
            with_setting(f"model.layers={layers}"),
        )
    return wanted
