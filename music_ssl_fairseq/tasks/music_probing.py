"""Register probing as a fairseq task, which runs a `ProbeExperiment`."""

import math
import shlex
import time
from pathlib import Path
from typing import Any

from fairseq.logging import metrics
from fairseq.tasks import register_task
from omegaconf import OmegaConf

from music_ssl_fairseq.compat import check_unpickler, one_line_errors

# fairseq may import nothing of a user_dir but tasks/. The optimizer comes with heads.update.
from music_ssl_fairseq.criterions import music_probe as _criterion  # noqa: F401
from music_ssl_fairseq.data.run_identity import Identity, differences
from music_ssl_fairseq.errors import InputError
from music_ssl_fairseq.models import music_probe as _model  # noqa: F401
from music_ssl_fairseq.probing.config import ProbingTaskConfig
from music_ssl_fairseq.probing.experiment import CHOOSE_ON, ProbeExperiment
from music_ssl_fairseq.probing.heads.fine_tuning import check_settings
from music_ssl_fairseq.probing.heads.update import mini_batches, update
from music_ssl_fairseq.probing.labels import probing_question
from music_ssl_fairseq.probing.scoring.results import Collector, refuse_another
from music_ssl_fairseq.probing.spec import FILE
from music_ssl_fairseq.runtime.texts import read_json
from music_ssl_fairseq.runtime.user_command import made_tasks, newest_run, with_setting
from music_ssl_fairseq.tasks.refusals import (
    refuse_impossible,
    refuse_in_probes,
    whole_configuration,
)
from music_ssl_fairseq.tasks.run_folder import IDENTITY, RunFolderTask
from music_ssl_fairseq.training import prepare_training
from music_ssl_fairseq.training.epoch import note_batching
from music_ssl_fairseq.training.narration import shown
from music_ssl_fairseq.training.processes import is_distributed, stop_loading

_NEEDED = (
    ("task.data", "data", "DIR, a folder that `python -m manifests_tools NAME` has written"),
    ("model.upstream", "upstream", "FILE, what is to be probed (or random:FILE, mfcc, chroma)"),
)
"""Settings without a default: their names, the task's fields, and what to give."""


def _with_given(name: str, expected: str | None) -> str:
    """Return the command with a setting that is missing: a task of probing/, or the newest run."""
    if name == "model.upstream":
        return with_setting(f"{name}={newest_run() or 'mfcc'}")
    for folder in made_tasks():
        if expected in (None, read_json(Path(folder, FILE)).get("name")):
            return with_setting(f"{name}={folder}")
    return "python -m manifests_tools --help"


@register_task("music_probing", dataclass=ProbingTaskConfig)
class MusicProbingTask(RunFolderTask):
    """Train heads on cached features of a frozen upstream; choose on validation; score."""

    cfg: ProbingTaskConfig

    def __init__(self, cfg: ProbingTaskConfig):
        super().__init__(cfg)
        self.probe = ProbeExperiment(cfg)
        self.kind = self.probe.spec.of_kind
        self._collectors: dict[str, Collector] = {}
        self._iterators: dict[str, Any] = {}
        self._optimizer: Any = None
        self._validating = CHOOSE_ON
        self._epoch = 0
        self._last_update = -1
        self._saved_at = -math.inf

    @classmethod
    def setup_task(cls, cfg: Any, **kwargs: Any) -> "MusicProbingTask":
        """Check versions, settings and the run's folder; fail in one line."""
        with one_line_errors():
            check_unpickler()
            prepare_training()
            for name, key, what in _NEEDED:
                if not OmegaConf.select(cfg, key, throw_on_resolution_failure=False):
                    right = _with_given(name, cfg.get("expected"))
                    raise InputError(f"{name} is missing: give {name}={what}", right)
            whole = None if kwargs.get("from_checkpoint") else whole_configuration(cfg)
            if whole is not None:
                refuse_impossible(whole)
                refuse_in_probes(whole)
            task = cls(cfg)
            if not kwargs.get("from_checkpoint"):
                task.run.enter(cfg, task.data_identity, own_restore_file=True)
                refuse_another(Path(cfg.output_dir), task.probe.spec.name)
            return task

    def start_lines(self, cfg: Any, model: Any) -> list[str]:
        """Name the encoder, the task and the heads."""
        spec, source = self.probe.spec, self.probe.source
        clips = (f"{split} {len(data.clips):,}" for split, data in self.datasets.items())
        unfreeze, heads = self.probe.unfreeze, len(model.active)
        what = f"fine-tuning ({unfreeze}) of" if unfreeze else "probe of"
        return [
            f"{what} {source.name} ({source.path}): {heads} head{'s' * (heads > 1)}",
            f"task: {spec.name} ({spec.kind}, {spec.metric}), clips: {', '.join(clips)}",
        ]

    def best_line(self, cfg: Any) -> str:
        """Give the score of the head that validation has chosen so far."""
        chosen = self.probe.model.chosen_head()
        if chosen is None:
            return ""
        head = chosen.head
        score = f"valid {self.probe.spec.metric} {chosen.score:.4g}"
        return f"{score}, layer {head.layer}, learning rate {head.learning_rate:g}"

    def next_command(self, cfg: Any) -> str:
        """Score the chosen head on the test split, or without one on validation's."""
        split = "test" if Path(self.cfg.data, "test.tsv").exists() else "valid"
        best = shown(Path(cfg.checkpoint.save_dir, "checkpoint_best.pt"))
        return (
            f"fairseq-validate {shlex.quote(shown(self.cfg.data))} --path {shlex.quote(best)} "
            "--user-dir music_ssl_fairseq --task music_probing "
            f"--valid-subset {split} --batch-size 64"
        )

    def data_identity(self, cfg: Any) -> Identity:
        """Identify the task, its clips and labels, and the upstream."""
        return self.probe.identity()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Refuse, under fairseq-validate, the heads of another task; other clips are allowed.

        Raises InputError if they answer another question than `task.data` asks, or were trained on
        windows of another length.
        """
        with one_line_errors():
            then = state_dict.get(IDENTITY, {})
            if found := differences(probing_question(self.probe.spec), then):
                raise InputError(
                    f"{self.cfg.data}: not the task that this probe was trained on: {found}. Give "
                    "the folder of that task, or the checkpoint of this one"
                )
            window = {"task.window_seconds": str(self.cfg.window_seconds)}
            if found := differences(window, then):
                raise InputError(f"{found}: leave it as it was, or train another probe")
        super().load_state_dict(state_dict)

    def build_model(self, cfg: Any, from_checkpoint: bool = False) -> Any:
        """Build the grid of heads; for fairseq-validate, to hold the chosen one."""
        with one_line_errors():
            self.probe.unfreeze = cfg.unfreeze if check_settings(cfg) else ""
            if not from_checkpoint:
                if is_distributed():
                    only = "distributed_training.distributed_world_size=1"
                    raise InputError(f"a probe trains in one process: {only}")
                self.load_dataset("train")
            model = super().build_model(cfg, from_checkpoint)
        model.scoring = from_checkpoint
        self.probe.model = model
        return model

    def load_dataset(self, split: str, **kwargs: Any) -> None:
        """Read a split's labels, and compute the features that the cache lacks."""
        with one_line_errors():
            self.datasets[split] = self.probe.dataset(split)

    def get_batch_iterator(self, dataset: Any, *args: Any, **kwargs: Any) -> Any:
        """Return fairseq's iterator; note its split, for the validation that may follow."""
        split = next(name for name, data in self.datasets.items() if data is dataset)
        self._validating = split
        iterator = super().get_batch_iterator(dataset, *args, **kwargs)
        self._iterators[split] = note_batching(iterator, kwargs)
        return self._iterators[split]

    def _stop_loading(self, split: str) -> None:
        """Stop the workers, each of which the garbage collector would wait 5 s for."""
        stop_loading({split: self._iterators[split]})

    def train_step(
        self,
        sample: dict[str, Any],
        model: Any,
        criterion: Any,
        optimizer: Any,
        update_num: int,
        ignore_grad: bool = False,
    ) -> tuple[Any, int, dict[str, Any]]:
        """Update the heads after each mini-batch of a sample; fairseq does so after the last."""
        if self.probe.batches_at_once > 1:
            with one_line_errors():
                if update_num == self._last_update:
                    raise InputError(
                        "optimization.update_freq: heads on a CPU are updated with every batch; "
                        "make dataset.batch_size as large as an update is to be"
                    )
            self._last_update = update_num
        self._tell_heads_in_training(optimizer)
        model.train()
        model.set_num_updates(update_num)
        *earlier, last = mini_batches(sample)
        logs = [update(model, optimizer, batch, self.kind) for batch in earlier]
        if earlier:
            optimizer.zero_grad()
        loss, size, last_log = criterion(model, last)
        optimizer.backward(loss * 0 if ignore_grad else loss)
        return loss, size, {key: sum(log[key] for log in [*logs, last_log]) for key in last_log}

    def optimizer_step(self, optimizer: Any, model: Any, update_num: int) -> None:
        """Update the heads in training, each at its own rate."""
        self._tell_heads_in_training(optimizer)
        optimizer.step()

    def _tell_heads_in_training(self, optimizer: Any) -> None:
        """Tell the optimizer which heads are in training, and their rates."""
        self._optimizer, model = optimizer, self.probe.model
        optimizer.set_heads(model.active.tolist(), model.learning_rates())

    def begin_valid_epoch(self, epoch: int, model: Any) -> None:
        """Forget the predictions of the last validation."""
        self._epoch = epoch
        self._collectors = {}
        if "train" in self._iterators and self._iterators["train"].end_of_epoch():
            self._stop_loading("train")

    def valid_step(
        self, sample: dict[str, Any], model: Any, criterion: Any, **kwargs: Any
    ) -> tuple[Any, int, dict[str, Any]]:
        """Evaluate a batch; keep its predictions out of the log, which fairseq prints."""
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
        if not self.probe.model.scoring:
            # fairseq looks for the key before post_validate, which sets its value.
            metrics.log_scalar("saved", -1, weight=0)
            return
        with one_line_errors():
            self._stop_loading(split)
            scores = self.probe.score(split, self._collectors.pop(split))
        for name, value in scores.values.items():
            metrics.log_scalar(name, value, weight=0, round=5)

    def post_validate(self, model: Any, stats: dict[str, Any], agg: Any) -> None:
        """Judge each head after a validation in training, and write the table."""
        collector = self._collectors.pop(self._validating)
        if self._validating != CHOOSE_ON:
            return
        last = 0 < int(self.cfg.last_epoch or 0) <= self._epoch
        with one_line_errors():
            self.probe.judge(collector, self._epoch, last)
        if self._optimizer is not None:
            self._tell_heads_in_training(self._optimizer)
        if not len(model.active):
            self._stop_loading(CHOOSE_ON)
        chosen = model.chosen_head()
        stats.pop("best_saved", None)
        stats |= {
            "saved": self._epoch if self._checkpoint_is_due() else -1,
            "score": chosen.score,
            "best_layer": chosen.head.layer,
            "best_learning_rate": chosen.head.learning_rate,
            "rows_in_training": len(model.active),
        }
        self.probe.write_table()

    def _checkpoint_is_due(self) -> bool:
        """Return whether fairseq is to write a checkpoint, which takes `saved` for a score."""
        now = time.monotonic()
        if len(self.probe.model.active) and now - self._saved_at < self.cfg.save_seconds:
            return False
        self._saved_at = now
        return True
