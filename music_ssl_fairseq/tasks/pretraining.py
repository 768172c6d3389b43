"""The pre-training tasks: from manifests, and label sets if there are any, to crops with masks."""

import atexit
import logging
import os
import shlex
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any, Optional

from fairseq import checkpoint_utils
from fairseq.tasks import register_task
from omegaconf import MISSING

from music_ssl_fairseq.audio.tar_members import parse_member
from music_ssl_fairseq.compat import check_unpickler, one_line_errors

# fairseq imports tasks/ and models/ of a user_dir, and nothing else.
from music_ssl_fairseq.criterions import music2vec as _criterion  # noqa: F401
from music_ssl_fairseq.criterions import music_hubert as _other_criterion  # noqa: F401
from music_ssl_fairseq.criterions.collapse import collapse_advice, warmup_updates
from music_ssl_fairseq.criterions.totals import DelayedTotals, log_pace
from music_ssl_fairseq.data.augmentation import equalise
from music_ssl_fairseq.data.crop_config import CropConfig
from music_ssl_fairseq.data.manifest import Manifest, missing_manifest
from music_ssl_fairseq.data.pretraining_dataset import PretrainingDataset
from music_ssl_fairseq.data.run_identity import Identity, manifest_identity
from music_ssl_fairseq.errors import InputError

# fairseq imports tasks/ and models/ of a user_dir, and nothing else.
from music_ssl_fairseq.optim import muon as _optimizer  # noqa: F401
from music_ssl_fairseq.optim import tri_stage as _lr_scheduler  # noqa: F401
from music_ssl_fairseq.optim.fused_adamw import FusedAdamW
from music_ssl_fairseq.runtime.settings import changeable
from music_ssl_fairseq.runtime.user_command import made_tasks
from music_ssl_fairseq.tasks.label_sets import LabelSets
from music_ssl_fairseq.tasks.refusals import refuse_impossible, whole_configuration
from music_ssl_fairseq.tasks.run_folder import RunFolderTask
from music_ssl_fairseq.training import prepare_training
from music_ssl_fairseq.training.epoch import note_batching
from music_ssl_fairseq.training.narration import shown
from music_ssl_fairseq.training.processes import exchange_numbers_on_cpu, fork_workers, stop_loading
from music_ssl_fairseq.upstream import read
from music_ssl_fairseq.upstream.build import initialise

logger = logging.getLogger(__name__)


@dataclass
class PretrainingConfig(CropConfig):
    data: str = changeable(MISSING, "folder with train.tsv and valid.tsv (manifests)")
    rebuild_batches: bool = changeable(
        True,
        "make new batches per epoch in the same data loader. false starts new workers "
        "each epoch, after the old ones have ended",
    )
    trackio_project: Optional[str] = changeable(
        None,
        "project of trackio to log to, here and without an account; common.wandb_project logs to "
        "Weights & Biases",
    )
    background_saves: bool = changeable(
        True, "train on while a checkpoint is written. false waits for the disk, as fairseq does"
    )
    # Any, because omegaconf knows no type for "a string or a list of strings".
    label_dir: Any = changeable(
        None,
        "a folder of units (music_ssl_fairseq label), or a list of such folders, that masked "
        "frames predict beside the teacher's view; none by default. Not in fairseq",
    )
    label_rate: Optional[float] = changeable(
        None,
        "labels per second: 100 for MFCC, 50 for deep features. Only for labels without the "
        "labeler's metadata.json, which states it; fairseq has it in the model too",
    )


def data_splits(cfg: Any) -> list[str]:
    """Return the splits that a run of this whole configuration trains and validates on."""
    valid = [] if cfg.dataset.disable_validation else cfg.dataset.valid_subset.split(",")
    return [cfg.dataset.train_subset, *valid]


class PretrainingTask(RunFolderTask):
    """Load splits as crops, with the units of their frames if there are label sets."""

    min_mask_spans = 1
    has_targets = False
    """Whether crops have targets without label sets, too: random projections."""
    scores_unmasked = False
    """Whether the criterion scores unmasked frames as well."""

    def __init__(self, cfg: PretrainingConfig):
        super().__init__(cfg)
        if not os.path.isdir(cfg.data):
            raise missing_manifest(os.path.join(cfg.data, "train.tsv"))
        self.labels = LabelSets(cfg.label_dir, cfg.data, cfg.label_rate)
        self.classes_per_set = self.labels.classes_per_set
        self._stops_at_exit: set[str] = set()
        self._training = False
        self._train_subset = "train"
        self._delayed_totals = DelayedTotals()
        self._update = 0
        whole = whole_configuration(cfg)
        self._max_update = whole.optimization.max_update if whole else 0
        self.warmup = warmup_updates(whole) if whole else 0
        self.advice = collapse_advice(whole) if whole else ""

    @classmethod
    def setup_task(cls, cfg: Any, **kwargs: Any) -> "PretrainingTask":
        """Make the task, as fairseq asks for it; what is missing is a one-line error."""
        with one_line_errors():
            check_unpickler()
            exchange_numbers_on_cpu()
            fork_workers()
            prepare_training(background_saves=bool(cfg.background_saves))
            whole = None if kwargs.get("from_checkpoint") else whole_configuration(cfg)
            if whole is not None:
                refuse_impossible(whole)
            task = cls(cfg)
            if kwargs.get("from_checkpoint"):
                task._train_subset = ""
            elif whole is not None:
                task._train_subset, *valid = data_splits(whole)
                if task._train_subset in valid:
                    logger.warning(
                        "dataset.valid_subset: %s is trained on, so that its crops and masks "
                        "differ from epoch to epoch in validation too",
                        task._train_subset,
                    )
                task.run.enter(cfg, task.data_identity)
            return task

    def data_identity(self, cfg: Any) -> Identity:
        """Identify the data that a run of this configuration trains and validates on."""
        found: Identity = {}
        for split in data_splits(cfg):
            file = os.path.join(self.cfg.data, f"{split}.tsv")
            if os.path.exists(file):
                found |= manifest_identity(Manifest(file))
        return found | self.labels.identity(data_splits(cfg))

    def build_model(self, cfg: Any, from_checkpoint: bool = False) -> Any:
        """Build the model; settings that do not fit together are a one-line error."""
        with one_line_errors():
            model = super().build_model(cfg, from_checkpoint)
            # A checkpoint has its own weights, and the file of init_from may be gone.
            if not from_checkpoint and cfg.init_from:
                initialise(model, read(cfg.init_from), self.cfg.normalize)
            return model

    def load_dataset(self, split: str, **kwargs: Any) -> None:
        """Load `<data>/<split>.tsv`; fairseq's other arguments are ignored."""
        cfg = self.cfg
        with one_line_errors():
            manifest = Manifest(os.path.join(cfg.data, f"{split}.tsv"))
            manifest.require_root()
            labels = self.labels.of_split(split, manifest)
            self.datasets[split] = PretrainingDataset(
                manifest,
                cfg,
                training=split == self._train_subset,
                labels=labels if labels or self.has_targets else None,
                min_mask_spans=self.min_mask_spans,
                list_unmasked=self.scores_unmasked,
            )

    def start_lines(self, cfg: Any, model: Any) -> list[str]:
        """Name the model, its data and its targets."""
        weights = sum(parameter.numel() for parameter in model.parameters())
        updates = cfg.optimization.update_freq[0] * cfg.distributed_training.distributed_world_size
        batch = f"{cfg.dataset.batch_size} crops" if cfg.dataset.batch_size else "batches by length"
        times = f" x {updates}" if updates > 1 else ""
        name = cfg.model._name
        return [
            f"{name}: {weights / 1e6:.1f} million weights, {batch}{times} per update",
            *(f"{split}: {data.contents}" for split, data in sorted(self.datasets.items())),
            *self.labels.start_lines(),
        ]

    def best_line(self, cfg: Any) -> str:
        """Give the best loss of a validation."""
        best = getattr(checkpoint_utils.save_checkpoint, "best", None)
        return "" if best is None else f"valid {cfg.checkpoint.best_checkpoint_metric} {best:.4g}"

    def next_command(self, cfg: Any) -> str:
        """Probe the run on the tasks of probing/, or else draw a map of the music."""
        run = shlex.quote(shown(os.path.dirname(os.path.abspath(cfg.checkpoint.save_dir))))
        tasks = made_tasks()
        if tasks:
            return f"python -m music_ssl_fairseq probe --upstream {run} --task {shlex.join(tasks)}"
        tracks = Manifest(os.path.join(self.cfg.data, "train.tsv"))
        if not os.path.isdir(tracks.root) or parse_member(tracks.name(0)):  # shards
            manifest = shlex.quote(shown(os.path.join(self.cfg.data, "valid.tsv")))
            places = f"--checkpoint {run} --manifest {manifest} --out {run}/features"
            return f"python -m music_ssl_fairseq extract {places}"
        return f"python -m music_ssl_fairseq map {shlex.quote(shown(tracks.root))} --upstream {run}"

    def can_reuse_epoch_itr(self, dataset: Any) -> bool:
        """Return whether later epochs may reuse the iterator. Each epoch still gets new batches."""
        rebuilt = self.cfg.rebuild_batches or not dataset.training
        return rebuilt and super().can_reuse_epoch_itr(dataset)

    def get_batch_iterator(self, dataset: Any, *args: Any, **kwargs: Any) -> Any:
        """Return fairseq's iterator, with its batching noted: see `ResumableEpochs`."""
        iterator = super().get_batch_iterator(dataset, *args, **kwargs)
        # If fairseq replaces the iterator each epoch, the old one would still read ahead.
        replaced = kwargs.get("update_epoch_batch_itr") or kwargs.get("disable_iterator_cache")
        reads_ahead = dataset.training and self.cfg.rebuild_batches and not replaced
        batches_of = partial(self._batches, dataset, kwargs) if reads_ahead else None
        return note_batching(iterator, kwargs, batches_of)

    def _batches(self, dataset: Any, settings: dict[str, Any], epoch: int) -> list[Any]:
        """Return the batches of an epoch, of all processes, in the order of their lengths."""
        indices = dataset.order(epoch)
        if settings.get("max_positions") is not None:
            ignore = settings.get("ignore_invalid_inputs", False)
            indices = self.filter_indices_by_size(
                indices, dataset, settings["max_positions"], ignore
            )
        names = ("max_tokens", "max_sentences", "required_batch_size_multiple")
        sizes = {name: settings[name] for name in names if name in settings}
        return dataset.batch_by_size(indices, **sizes)

    def train_step(
        self,
        sample: Any,
        model: Any,
        criterion: Any,
        optimizer: Any,
        update_num: int,
        *args: Any,
        **kwargs: Any,
    ) -> Any:
        """Run fairseq's step on filtered crops, with `FusedAdamW`'s `delayed_norm` and `batch`."""
        if "levels" in sample:
            inputs = sample["net_input"]
            source = equalise(inputs["source"], sample["levels"], inputs["padding_mask"])
            sample = {**sample, "net_input": {**inputs, "source": source}}
        self._training, self._update = True, update_num
        self._stop_loading_at_exit("train")
        batch: AbstractContextManager[None] = nullcontext()
        if isinstance(optimizer, FusedAdamW):
            optimizer.delayed_norm = True
            batch = optimizer.batch(model)
        with batch:
            arguments = sample, model, criterion, optimizer, update_num
            return super().train_step(*arguments, *args, **kwargs)

    def valid_step(self, *args: Any, **kwargs: Any) -> Any:
        self._training = False
        self._stop_loading_at_exit("valid")
        return super().valid_step(*args, **kwargs)

    def reduce_metrics(self, logging_outputs: list[dict[str, Any]], criterion: Any) -> None:
        """Log the sums of an update. On a GPU, training logs one update late (`DelayedFetch`)."""
        if self._training and logging_outputs:
            logging_outputs = [self._delayed_totals(logging_outputs)]
            self._check_collapse(logging_outputs[0], criterion)
        super().reduce_metrics(logging_outputs, criterion)
        if self._training and logging_outputs:
            log_pace(logging_outputs[0], max(0, self._max_update - self._update - 1))

    def _check_collapse(self, sums: dict[str, Any], criterion: Any) -> None:
        """End a collapsed run. All processes have the same sums, so they end together."""
        message = criterion.collapsed(sums, self._update)
        if message is None:
            return
        if criterion.cfg.stop_if_collapsed:
            with one_line_errors():
                raise InputError(message)
        logger.warning(message)

    def _stop_loading_at_exit(self, kind: str) -> None:
        """Stop loading processes at exit, where torch would wait five seconds for each.

        atexit runs what was registered last first, so this must follow torch's own registration,
        at a loader's first batch.
        """
        if kind not in self._stops_at_exit:
            self._stops_at_exit.add(kind)
            atexit.register(stop_loading, self.dataset_to_epoch_iter)


@register_task("music2vec_pretraining", dataclass=PretrainingConfig)
class Music2VecPretrainingTask(PretrainingTask):
    """Pre-train music2vec on a manifest, and on its labels if there are any.

    data2vec has `normalize: true` and crops of 30 s: see examples/.
    """


@dataclass
class MusicHubertPretrainingConfig(PretrainingConfig):
    label_dir: Any = changeable(
        MISSING,
        "folder with train.km, valid.km and dict.km.txt (music_ssl_fairseq label), or a list of "
        "such folders: one label set and one head each; [] for random projections alone "
        "(model.projection_targets). fairseq has one folder and a list of file endings "
        "(task.labels)",
    )


@register_task("music_hubert_pretraining", dataclass=MusicHubertPretrainingConfig)
class MusicHubertPretrainingTask(PretrainingTask):
    """Pre-train musicHuBERT on a manifest and its labels."""

    min_mask_spans = 2
    has_targets = True
    scores_unmasked = True
