"""The probe: a small head for each layer and learning rate, all trained at once."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, List, Optional  # noqa: UP035 (fairseq's parser needs List)

import torch
from fairseq.dataclass import FairseqDataclass
from fairseq.models import BaseFairseqModel, register_model
from omegaconf import II, MISSING
from torch import Tensor

from music_ssl_fairseq.compat import one_line_errors
from music_ssl_fairseq.errors import InputError
from music_ssl_fairseq.probing.heads import row_by_row
from music_ssl_fairseq.probing.heads.grid import MIXED, PARAMETERS, ProbeRows, Row, grid
from music_ssl_fairseq.probing.heads.schedule import RowSchedule

logger = logging.getLogger(__name__)

LEARNING_RATES = [5e-5, 1e-4, 5e-4, 1e-3, 5e-3, 1e-2]


@dataclass
class MusicProbeConfig(FairseqDataclass):
    upstream: str = field(
        default=MISSING,
        metadata={
            "help": "what is probed: a checkpoint of this package or of fairseq's HuBERT, data2vec "
            "or wav2vec 2.0, a Hugging Face folder, `random:` and one of these for the same model "
            "with random weights, or a front end without training: mfcc, chroma, logmel, cqt"
        },
    )
    upstream_seed: int = field(default=0, metadata={"help": "of random weights"})
    layers: Optional[str] = field(  # noqa: UP045 (fairseq's parser needs Optional)
        default=None,
        metadata={
            "help": "layers to probe, separated by commas: 0 is the projected extractor output, "
            "`all` the learned weighted sum of the Transformer's; by default every one, and all"
        },
    )
    learning_rates: List[float] = field(  # noqa: UP006
        default_factory=lambda: list(LEARNING_RATES),
        metadata={"help": "each layer is probed with each of these"},
    )
    hidden_size: int = field(default=512, metadata={"help": "hidden values of a head"})
    dropout: float = field(default=0.2, metadata={"help": "dropout of the hidden values"})
    patience: int = field(
        default=8, metadata={"help": "epochs without a better validation that stop a head"}
    )
    lr_patience: int = field(
        default=3, metadata={"help": "epochs without a better validation that reduce its rate"}
    )
    lr_factor: float = field(default=0.5, metadata={"help": "what the rate is multiplied by then"})
    seed: int = field(
        default=II("common.seed"),
        metadata={"help": "of parameters and dropout; each head draws from (seed, layer, rate)"},
    )


@dataclass(frozen=True)
class ProbeInputs:
    """What the task tells the model.

    Attributes:
        layers: names of the layers in the features.
        dimension: values of each.
        num_outputs: logits, or numbers of a regression.
        fingerprint: of the upstream, hex.
        feature_mean, feature_deviation: `[layers, dimension]`, taken off and divided by.
        target_mean, target_deviation: `[outputs]`, the same for the targets of a regression.
    """

    layers: Sequence[str]
    dimension: int
    num_outputs: int
    fingerprint: str
    feature_mean: Tensor
    feature_deviation: Tensor
    target_mean: Tensor
    target_deviation: Tensor


@dataclass(frozen=True)
class Chosen:
    """The head with the best validation, and that."""

    row: Row
    score: float
    epoch: int


@register_model("music_probe", dataclass=MusicProbeConfig)
class MusicProbeModel(BaseFairseqModel):
    """A grid of heads in training; when they have stopped, the one chosen on validation.

    The best state of the best row is kept in `chosen_*`, and no other: what has a worse score can
    only be chosen later by a new best of its own. A row that stops leaves the batched module.
    """

    active: Tensor
    chosen: Tensor
    fingerprint: Tensor

    def __init__(self, cfg: MusicProbeConfig, inputs: ProbeInputs):
        super().__init__()
        self.rows = grid(self._layers(cfg, inputs.layers), cfg.learning_rates)
        self.heads = ProbeRows(
            self.rows,
            inputs.layers,
            inputs.dimension,
            cfg.hidden_size,
            inputs.num_outputs,
            cfg.dropout,
            cfg.seed,
        )
        self.schedule = RowSchedule(
            [row.learning_rate for row in self.rows], cfg.patience, cfg.lr_patience, cfg.lr_factor
        )
        self.register_buffer("active", torch.arange(len(self.rows)))
        self.register_buffer("chosen", torch.tensor(-1))
        self.register_buffer("fingerprint", _bytes(inputs.fingerprint))
        for name in ("feature_mean", "feature_deviation", "target_mean", "target_deviation"):
            self.register_buffer(name, getattr(inputs, name))
        for name, value in self.heads.state(0).items():
            self.register_buffer(f"chosen_{name}", value)
        self.scoring = False
        self._holds_chosen = False
        self._as_they_are: bool | None = None
        self._expected = inputs.fingerprint
        self._upstream = cfg.upstream
        self._updates = 0
        self._draws = 0

    @staticmethod
    def _layers(cfg: MusicProbeConfig, available: Sequence[str]) -> list[str]:
        mixed = [MIXED] if len(available) > 2 else []
        if cfg.layers is None:
            return [*available, *mixed]
        wanted = [name.strip() for name in str(cfg.layers).split(",")]
        unknown = [name for name in wanted if name not in available and name not in mixed]
        if unknown:
            raise InputError(
                f"model.layers: no layer {unknown[0]!r}; {cfg.upstream} has "
                f"{', '.join([*available, *mixed])}"
            )
        return wanted

    @classmethod
    def build_model(cls, cfg: MusicProbeConfig, task: Any) -> "MusicProbeModel":
        """fairseq's entry point."""
        return cls(cfg, task.probe_inputs())

    def max_positions(self) -> None:
        """No limit."""

    def set_num_updates(self, num_updates: int) -> None:
        """fairseq says which update comes next: dropout follows from it."""
        self._updates, self._draws = num_updates, 0

    def forward(self, features: Tensor) -> Tensor:
        """`[N, layers, D]` to logits `[rows, N, outputs]`: of the rows in training, or, when
        `scoring`, of the chosen one."""
        features = self._standardised(features.float())
        heads = self._chosen_heads() if self.scoring else self.heads
        if not (features.is_cuda or self.training or torch.is_grad_enabled()):
            return row_by_row.evaluate(heads, features)
        if self.scoring:
            return heads(features)
        # Several batches may make one update (update_freq): each has dropout of its own.
        draw = self._updates * 1000 + self._draws
        self._draws += 1
        return self.heads(features, draw)

    def train_row_by_row(
        self, sample: dict[str, Any], optimizer: row_by_row.RowOptimizer, loss: row_by_row.Loss
    ) -> Tensor:
        """On a CPU: update each row with each mini-batch of a sample.

        Returns:
            `[rows]` losses summed over all items.
        """
        features = self._standardised(sample["net_input"]["features"].float())
        size = sample["batch_size"]
        updates = [
            row_by_row.Update(slice(first, first + size), self._updates * 1000 + i)
            for i, first in enumerate(range(0, len(features), size))
        ]
        return row_by_row.train(self.heads, optimizer, features, sample["target"], updates, loss)

    def _standardised(self, features: Tensor) -> Tensor:
        if self._as_they_are is None:
            means, deviations = self.feature_mean, self.feature_deviation
            self._as_they_are = bool((means == 0).all() and (deviations == 1).all())
        if self._as_they_are:
            return features
        return (features - self.feature_mean) / self.feature_deviation

    def _chosen_heads(self) -> ProbeRows:
        if not self._holds_chosen:
            self.heads.resize([self.rows[int(self.chosen)]])
            for name in PARAMETERS:
                getattr(self.heads, name).data = getattr(self, f"chosen_{name}").clone()
            self._holds_chosen = True
        return self.heads

    def normalised_target(self, target: Tensor) -> Tensor:
        """Targets of a regression as the heads predict them: z-scored on the training split.

        Computed in double precision: a target may vary little around a large mean. float32.
        """
        return ((target.double() - self.target_mean) / self.target_deviation).float()

    def in_units(self, outputs: Tensor) -> Tensor:
        """The other way round: outputs in the units of the labels, float64."""
        return outputs.double() * self.target_deviation + self.target_mean

    def learning_rates(self) -> list[float]:
        """Now, of the rows in training."""
        return self.schedule.learning_rate[self.active].tolist()

    @torch.no_grad()
    def take_scores(self, scores: Tensor, epoch: int, last: bool = False) -> None:
        """After a validation: keep the best row's state, lower rates, let rows stop.

        Args:
            scores: `[rows in training]`, higher is better.
            last: no epoch comes after this one.
        """
        best_before = self.best_score()
        verdict = self.schedule.update(self.active, scores, epoch)
        improved = torch.where(verdict.improved, scores.to(self.schedule.best_score), -torch.inf)
        best = int(improved.argmax())
        if improved[best] > best_before:
            self.chosen.fill_(self.active[best])
            for name, value in self.heads.state(best).items():
                getattr(self, f"chosen_{name}").copy_(value)
        stopped = torch.ones_like(verdict.stopped) if last else verdict.stopped
        if stopped.any():
            kept = (~stopped).nonzero().squeeze(1)
            self.heads.keep(kept.tolist())
            self.active = self.active[kept.to(self.active.device)]

    def best_score(self) -> float:
        """On validation, of the chosen row."""
        chosen = int(self.chosen)
        return -float("inf") if chosen < 0 else float(self.schedule.best_score[chosen])

    def chosen_row(self) -> Chosen | None:
        """Which head is to be scored; None before the first validation."""
        index = int(self.chosen)
        if index < 0:
            return None
        return Chosen(self.rows[index], self.best_score(), int(self.schedule.best_epoch[index]))

    def load_state_dict(
        self,
        state_dict: dict[str, Any],
        strict: bool = True,
        model_cfg: Any = None,
        args: Any = None,
    ) -> Any:
        """Load a probe, in training or finished.

        Raises:
            InputError: if it was trained on another upstream or another grid.
        """
        with one_line_errors():
            self._check(state_dict)
            self.active = state_dict["active"].clone().to(self.active.device)
            self.heads.resize([self.rows[i] for i in self.active.tolist()])
            self._holds_chosen, self._as_they_are = False, None
            return super().load_state_dict(state_dict, strict, model_cfg, args)

    def _check(self, state: dict[str, Any]) -> None:
        if "fingerprint" not in state:
            raise InputError("this checkpoint is no music_probe")
        found = bytes(state["fingerprint"].tolist()).hex()
        if found != self._expected:
            raise InputError(
                f"the probe was trained on another upstream than {self._upstream}: fingerprint "
                f"{found[:12]} instead of {self._expected[:12]}; give the one it was trained on "
                "(--upstream FILE), or train again in another hydra.run.dir"
            )
        rows = len(state["schedule.best_score"])
        if rows != len(self.rows):
            raise InputError(
                f"the checkpoint has {rows} heads, the configuration {len(self.rows)}: use the "
                "same model.layers and model.learning_rates, or another hydra.run.dir"
            )


def _bytes(fingerprint: str) -> Tensor:
    return torch.tensor(list(bytes.fromhex(fingerprint)), dtype=torch.uint8)
