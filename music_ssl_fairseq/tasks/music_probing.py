"""The task of probing a frozen encoder on a music task."""

import logging
import math
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Optional

import numpy as np
import torch
from fairseq.dataclass import FairseqDataclass
from fairseq.logging import metrics
from fairseq.tasks import register_task
from omegaconf import II, MISSING
from omegaconf.errors import InterpolationToMissingValueError, MissingMandatoryValue

from music_ssl_fairseq.compat import check_versions, one_line_errors, stop_loading

# fairseq imports tasks/ and models/ of a user_dir, and nothing else.
from music_ssl_fairseq.criterions import music_probe as _criterion  # noqa: F401
from music_ssl_fairseq.data.identity import Identity, differences
from music_ssl_fairseq.errors import InputError
from music_ssl_fairseq.models import music_probe as _model
from music_ssl_fairseq.probing.dataset import ProbingDataset
from music_ssl_fairseq.probing.features.cache import FeatureStore, clip_of
from music_ssl_fairseq.probing.features.fill import Plan, fill, identity
from music_ssl_fairseq.probing.features.source import Source, open_source
from music_ssl_fairseq.probing.heads import adam as _optimizer  # noqa: F401
from music_ssl_fairseq.probing.identity import probing_identity, probing_question
from music_ssl_fairseq.probing.labels import ProbingSplit
from music_ssl_fairseq.probing.scoring import results
from music_ssl_fairseq.probing.scoring.beats import DECODERS
from music_ssl_fairseq.probing.scoring.collector import Collector
from music_ssl_fairseq.probing.scoring.metrics import evaluate
from music_ssl_fairseq.probing.scoring.selection import row_scores
from music_ssl_fairseq.probing.spec import read_spec
from music_ssl_fairseq.tasks.run_folder import IDENTITY, RunFolderTask
from music_ssl_fairseq.training import prepare_training
from music_ssl_fairseq.training.epoch import note_cut

logger = logging.getLogger(__name__)

_AT_ONCE = 8
"""Updates of a row before the next row's turn, on a CPU: its weights and moments (5 MB for a base
model) then come from the caches most of the time, and 8 batches still are only 22 MB."""

_NEEDED = (
    ("task.data", "data", "DIR, a folder that `python -m manifests_tools NAME` has written"),
    ("model.upstream", "upstream", "FILE, what is to be probed (or random:FILE, mfcc, chroma)"),
)
"""Settings without a default: their names, the task's fields, and what to give."""

CHOOSE_ON = "valid"
"""The split that decides: which row, and when it stops."""


def _is_given(cfg: Any, key: str) -> bool:
    try:
        return bool(cfg[key])
    except (MissingMandatoryValue, InterpolationToMissingValueError):
        return False


@dataclass
class MusicProbingConfig(FairseqDataclass):
    data: str = field(
        default=MISSING,
        metadata={
            "help": "folder with task.json, manifests and labels (python -m manifests_tools NAME)"
        },
    )
    expected: Optional[str] = field(  # noqa: UP045 (fairseq's parser needs Optional)
        default=None,
        metadata={
            "help": "name of the task that this configuration is for; a folder that holds another "
            "one is refused. null for any"
        },
    )
    window_seconds: float = field(
        default=5.0,
        metadata={
            "help": "length of the windows that the encoder hears; 0 for whole clips. Scores of a "
            "clip are means over its windows"
        },
    )
    cache_dir: str = field(
        default="feature_cache",
        metadata={"help": "where features are kept; several tasks and runs may share it"},
    )
    cache_limit_gb: float = field(
        default=50.0,
        metadata={"help": "size of the cache at most; what was not used for longest goes first"},
    )
    output_dir: str = field(
        default="probe",
        metadata={"help": "where probe.json, rows.csv, test.json and predictions are written"},
    )
    decoder: str = field(
        default="dbn",
        metadata={
            "help": "from activations to beats: dbn (dynamic Bayesian network), librosa (dynamic "
            "programming) or peaks"
        },
    )
    save_seconds: float = field(
        default=20.0,
        metadata={
            "help": "between two checkpoints at least, of heads still in training: a hundred heads "
            "are 400 MB. The last checkpoint is always written"
        },
    )
    # Optional, because fairseq-validate passes null for what its command line does not name.
    upstream: Optional[str] = field(  # noqa: UP045
        default=II("model.upstream"), metadata={"help": "the model's; set it there"}
    )
    upstream_seed: Optional[int] = field(  # noqa: UP045
        default=II("model.upstream_seed"), metadata={"help": "the model's; set it there"}
    )
    last_epoch: Optional[int] = field(  # noqa: UP045
        default=II("optimization.max_epoch"), metadata={"help": "set it in optimization"}
    )
    cpu: bool = field(default=II("common.cpu"), metadata={"help": "compute features without a GPU"})
    seed: int = field(default=II("common.seed"), metadata={"help": "of the order of windows"})


@register_task("music_probing", dataclass=MusicProbingConfig)
class MusicProbingTask(RunFolderTask):
    """Train heads on cached features of a frozen upstream; choose on validation; score."""

    cfg: MusicProbingConfig

    def __init__(self, cfg: MusicProbingConfig):
        super().__init__(cfg)
        self.probing = read_spec(cfg.data)
        self.kind = self.probing.kind
        if cfg.decoder not in DECODERS:
            raise InputError(f"task.decoder {cfg.decoder!r}: one of {', '.join(DECODERS)}")
        if cfg.window_seconds < 0:
            raise InputError("task.window_seconds must be 0 (whole clips) or more")
        self.plan = Plan(cfg.window_seconds, self.kind == "beats", self._batch_seconds())
        self._collectors: dict[str, Collector] = {}
        self._iterators: dict[str, Any] = {}
        self._optimizer: Any = None
        self._model: Any = None
        self._validating = CHOOSE_ON
        self._epoch = 0
        self._last_update = -1
        self._saved_at = -math.inf
        if cfg.expected and cfg.expected != self.probing.name:
            raise InputError(
                f"{cfg.data}: holds the task {self.probing.name}, but this configuration is for "
                f"{cfg.expected}: give the --config-name of the task, another task.data, or "
                "task.expected=null for these settings all the same"
            )

    @classmethod
    def setup_task(cls, cfg: Any, **kwargs: Any) -> "MusicProbingTask":
        """fairseq's entry point: fails in one line if something needed is not there."""
        with one_line_errors():
            check_versions()
            prepare_training()
            for name, key, what in _NEEDED:
                if not _is_given(cfg, key):
                    raise InputError(f"{name} is missing: give {name}={what}")
            task = cls(cfg)
            if not kwargs.get("from_checkpoint"):
                task.run.enter(cfg, task.data_identity, own_restore_file=True)
                results.refuse_another(Path(cfg.output_dir), task.probing.name)
            return task

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Under fairseq-validate: refuse the heads of another task; other clips are welcome.

        Raises:
            InputError: if they answer another question than `task.data` asks.
        """
        there = state_dict.get(IDENTITY, {})
        with one_line_errors():
            if found := differences(probing_question(self.probing), there):
                raise InputError(
                    f"{self.cfg.data}: not the task that this probe was trained on: {found}. Give "
                    "the folder of that task, or the checkpoint of this one"
                )
        super().load_state_dict(state_dict)

    def data_identity(self, cfg: Any) -> Identity:
        """The task, its clips and labels, and the upstream whose features the heads see."""
        found = probing_identity(self.cfg.data, self.probing)
        return found | {"upstream": self.source.fingerprint[:16]}

    def device(self) -> str:
        """Where features are computed and heads are trained: `cpu` or `cuda`."""
        return "cpu" if self.cfg.cpu or not torch.cuda.is_available() else "cuda"

    @property
    def _row_by_row(self) -> bool:
        """Train on a CPU as its caches want it. Frames of beats fill them whatever is done."""
        return self.device() == "cpu" and not self.plan.frames

    def _batch_seconds(self) -> float:
        return 40.0 if self.device() == "cpu" else 640.0

    @cached_property
    def source(self) -> Source:
        """What makes the features."""
        return open_source(str(self.cfg.upstream), self.device(), int(self.cfg.upstream_seed or 0))

    @cached_property
    def store(self) -> FeatureStore:
        """Its features that are there already."""
        return FeatureStore(
            self.cfg.cache_dir,
            identity(self.source, self.plan),
            int(self.cfg.cache_limit_gb * 1e9),
            self.source.name,
        )

    def build_model(self, cfg: Any, from_checkpoint: bool = False) -> Any:
        """Build the grid of heads; or, for fairseq-validate, what will hold the chosen one."""
        with one_line_errors():
            if not from_checkpoint:
                self._refuse_several_processes()
                self.load_dataset("train")
            model = super().build_model(cfg, from_checkpoint)
        model.scoring = from_checkpoint
        self._model = model
        return model

    @staticmethod
    def _refuse_several_processes() -> None:
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            raise InputError(
                "a probe trains in one process: distributed_training.distributed_world_size=1"
            )

    def probe_inputs(self) -> _model.ProbeInputs:
        """What the model needs to know of the upstream and the task."""
        source = self.source
        dimension = source.frame_dimension if self.plan.frames else source.dimension
        shape = len(source.layers), dimension
        outputs = self.probing.num_outputs
        statistics = {
            "feature_mean": torch.zeros(shape),
            "feature_deviation": torch.ones(shape),
            "target_mean": torch.zeros(outputs),
            "target_deviation": torch.ones(outputs),
        }
        if "train" in self.datasets:  # otherwise a checkpoint has them
            statistics |= self._train_statistics(self.datasets["train"])
        return _model.ProbeInputs(
            source.layers, dimension, outputs, source.fingerprint, **statistics
        )

    def _train_statistics(self, dataset: ProbingDataset) -> dict[str, torch.Tensor]:
        found = {}
        if self.source.standardise:
            rows = np.concatenate([dataset.features(i) for i in range(len(dataset))])
            found["feature_mean"] = rows.mean(axis=0, dtype=np.float64)
            found["feature_deviation"] = rows.std(axis=0, dtype=np.float64) + 1e-6
        if self.kind == "regression":
            found["target_mean"] = dataset.split.targets.mean(axis=0)
            deviation = dataset.split.targets.std(axis=0)
            found["target_deviation"] = np.where(deviation > 0, deviation, 1.0)
        return {name: torch.from_numpy(value).float() for name, value in found.items()}

    def load_dataset(self, split: str, **kwargs: Any) -> None:
        """Read a split's labels, and compute the features that the cache lacks."""
        if split in self.datasets:
            return
        with one_line_errors():
            labels = ProbingSplit(self.cfg.data, split, self.probing)
            clips = [
                clip_of(labels.manifest, i, segment) for i, segment in enumerate(labels.segments)
            ]
            self.store.use(clip.key for clip in clips)
            fill(self.store, self.source, self.plan, clips)
            training = split == "train"
            at_once = _AT_ONCE if training and self._row_by_row else 1
            self.datasets[split] = ProbingDataset(
                labels, clips, self.store, self.plan, self.cfg.seed, training, at_once
            )
        logger.info(
            "%s: %d clips, %d windows of %s",
            split,
            len(clips),
            len(self.datasets[split]),
            f"{self.cfg.window_seconds:g} s" if self.cfg.window_seconds else "whole clips",
        )

    def train_step(
        self,
        sample: dict[str, Any],
        model: Any,
        criterion: Any,
        optimizer: Any,
        update_num: int,
        ignore_grad: bool = False,
    ) -> tuple[Any, int, dict[str, Any]]:
        """Forward and backward; row by row, the updates as well, with each mini-batch."""
        if ignore_grad or not self._row_by_row:
            arguments = sample, model, criterion, optimizer, update_num, ignore_grad
            return super().train_step(*arguments)
        with one_line_errors():
            self._refuse_accumulation(update_num)
        self.follow(optimizer, model)
        model.train()
        model.set_num_updates(update_num)
        return criterion.train_row_by_row(model, sample, optimizer)

    def _refuse_accumulation(self, update_num: int) -> None:
        if update_num == self._last_update:
            raise InputError(
                "optimization.update_freq: heads on a CPU are updated with every batch; make "
                "dataset.batch_size as large as an update is to be"
            )
        self._last_update = update_num

    def optimizer_step(self, optimizer: Any, model: Any, update_num: int) -> None:
        """Update the rows that are in training, each at its own rate."""
        self.follow(optimizer, model)
        optimizer.step()

    def follow(self, optimizer: Any, model: Any) -> None:
        """Tell the optimizer which rows are in training, and at which rates."""
        self._optimizer = optimizer
        optimizer.set_rows(model.active.tolist(), model.learning_rates())

    def begin_valid_epoch(self, epoch: int, model: Any) -> None:
        """Forget the predictions of the last validation."""
        self._epoch = epoch
        self._collectors = {}
        if "train" in self._iterators and self._iterators["train"].end_of_epoch():
            self._stop_loading("train")

    def get_batch_iterator(self, dataset: Any, *args: Any, **kwargs: Any) -> Any:
        """fairseq's, noting which split is being gone through."""
        split = self._validating = next(k for k, v in self.datasets.items() if v is dataset)
        iterator = super().get_batch_iterator(dataset, *args, **kwargs)
        self._iterators[split] = note_cut(iterator, kwargs)
        return self._iterators[split]

    def _stop_loading(self, split: str) -> None:
        """The garbage collector, to which fairseq leaves workers, waits for each in vain for 5 s:
        it has by then closed the queue through which a worker is told to stop."""
        stop_loading({split: self._iterators[split]})

    def valid_step(
        self, sample: dict[str, Any], model: Any, criterion: Any, **kwargs: Any
    ) -> tuple[Any, int, dict[str, Any]]:
        """Evaluate a batch, and keep what was predicted: fairseq would print all that is logged."""
        loss, size, logs = super().valid_step(sample, model, criterion, **kwargs)
        split = self._validating
        if split not in self._collectors:
            self._collectors[split] = Collector(self.datasets[split])
        self._collectors[split].add(logs.pop("predictions"))
        return loss, size, logs

    def reduce_metrics(self, logging_outputs: list[dict[str, Any]], criterion: Any) -> None:
        """Log the loss; in fairseq-validate, score all predictions and write the result."""
        super().reduce_metrics(logging_outputs, criterion)
        split = self._validating
        if split not in self._collectors:
            return
        if self._model.scoring:
            with one_line_errors():
                self._stop_loading(split)
                self.score(split, self._collectors.pop(split))
        else:
            # Brought up to date in post_validate: fairseq wants to find the key before.
            metrics.log_scalar("saved", -1, weight=0)

    def post_validate(self, model: Any, stats: dict[str, Any], agg: Any) -> None:
        """After a validation in training: judge each row, and write the table."""
        collector = self._collectors.pop(self._validating)
        if self._validating != CHOOSE_ON:
            return
        targets = collector.dataset.split.targets
        with one_line_errors():
            scores = torch.from_numpy(row_scores(collector, targets))
        last = 0 < int(self.cfg.last_epoch or 0) <= self._epoch
        model.take_scores(scores, self._epoch, last)
        if self._optimizer is not None:
            self.follow(self._optimizer, model)
        if not len(model.active):
            self._stop_loading(CHOOSE_ON)
        chosen = model.chosen_row()
        if chosen is None:
            raise InputError(
                f"{self.probing.metric} is not a number for any head: too few different labels in "
                f"{CHOOSE_ON}, or every model.learning_rates too high"
            )
        stats.pop("best_saved", None)
        stats |= {
            "saved": self._epoch if self._checkpoint_is_due() else -1,
            "score": chosen.score,
            "best_layer": chosen.row.layer,
            "best_learning_rate": chosen.row.learning_rate,
            "rows_in_training": len(model.active),
        }
        results.write_rows(Path(self.cfg.output_dir), self.about(), self.row_table())

    def _checkpoint_is_due(self) -> bool:
        """Whether fairseq is to write one after this epoch: it takes `saved` for a score."""
        now = time.monotonic()
        if len(self._model.active) and now - self._saved_at < self.cfg.save_seconds:
            return False
        self._saved_at = now
        return True

    def about(self) -> dict[str, Any]:
        """What a probe's files say of it."""
        chosen = self._model.chosen_row()
        return {
            "task": self.probing.name,
            "kind": self.kind,
            "metric": self.probing.metric,
            "classes": list(self.probing.classes),
            "targets": list(self.probing.targets),
            "upstream": self.source.name,
            "upstream_path": str(self.cfg.upstream),
            "fingerprint": self.source.fingerprint,
            "window_seconds": self.cfg.window_seconds,
            "layer": chosen.row.layer,
            "learning_rate": chosen.row.learning_rate,
            "valid_score": chosen.score,
            "best_epoch": chosen.epoch,
        }

    def row_table(self) -> list[dict[str, Any]]:
        """The grid, a line per row, as `rows.csv` has it."""
        schedule, chosen = self._model.schedule, int(self._model.chosen)
        columns: Sequence[Sequence[Any]] = (
            schedule.best_score.tolist(),
            schedule.best_epoch.tolist(),
            schedule.epochs.tolist(),
        )
        return [
            {
                "layer": row.layer,
                "learning_rate": row.learning_rate,
                "score": score,
                "best_epoch": best_epoch,
                "epochs": epochs,
                "chosen": i == chosen,
            }
            for i, (row, score, best_epoch, epochs) in enumerate(
                zip(self._model.rows, *columns, strict=True)
            )
        ]

    def score(self, split: str, collector: Collector) -> None:
        """Write what the chosen row scores on a split, from its outputs."""
        predictions = results.final_predictions(collector, DECODERS[self.cfg.decoder])
        scores = evaluate(self.probing, predictions)
        for name, value in scores.values.items():
            metrics.log_scalar(name, value, weight=0, round=5)
        about = self.about()
        if self.kind == "beats":
            about["decoder"] = self.cfg.decoder
        file = results.write_scores(Path(self.cfg.output_dir), split, about, scores, predictions)
        if scores.absent:
            logger.warning(
                "%s: no score for %s: no (or only) positive examples in this split",
                split,
                ", ".join(scores.absent),
            )
        logger.info(
            "%s: layer %s, learning rate %g; written to %s",
            split,
            about["layer"],
            about["learning_rate"],
            os.path.abspath(file),
        )

    def max_positions(self) -> None:
        """No limit."""

    @property
    def source_dictionary(self) -> None:
        """Audio has none."""

    @property
    def target_dictionary(self) -> None:
        """fairseq's generation tools ask for it."""
