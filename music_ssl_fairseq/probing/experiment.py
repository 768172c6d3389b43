"""One probe: a task's folder, an encoder's features, the grid of heads, and the result files.

fairseq's task and `train_and_score` both train what is prepared here, and differ only in who makes
the updates.
"""

import logging
import os
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from music_ssl_fairseq.data.run_identity import Identity
from music_ssl_fairseq.errors import InputError
from music_ssl_fairseq.frames import samples_in
from music_ssl_fairseq.probing.dataset import ProbingDataset, WaveformDataset
from music_ssl_fairseq.probing.features.cache import FeatureCache, clip_at
from music_ssl_fairseq.probing.features.fill import WindowPlan, feature_identity, fill
from music_ssl_fairseq.probing.features.source import EncoderSource, FeatureSource, open_source
from music_ssl_fairseq.probing.features.windows import FRAME_HOP
from music_ssl_fairseq.probing.heads.head_grid import HeadGrid, HeadInputs
from music_ssl_fairseq.probing.labels import ProbingSplit, probing_audio, probing_identity
from music_ssl_fairseq.probing.scoring import results
from music_ssl_fairseq.probing.scoring.beats import DECODERS
from music_ssl_fairseq.probing.scoring.metrics import Scores, evaluate
from music_ssl_fairseq.probing.scoring.results import Collector
from music_ssl_fairseq.probing.spec import read_spec
from music_ssl_fairseq.probing.writer import check_leakage
from music_ssl_fairseq.runtime.machine import choose_device
from music_ssl_fairseq.runtime.user_command import with_options
from music_ssl_fairseq.upstream.model import Upstream

logger = logging.getLogger(__name__)

CHOOSE_ON = "valid"
"""The split that chooses the head, and stops each of them."""

_BATCHES_AT_ONCE = 8
"""Mini-batches per batch of fairseq's on a CPU, where each batch costs some milliseconds more."""


class ProbeExperiment:
    """Everything about a probe but the updates. The builder of the model sets the first two."""

    model: HeadGrid  # the heads
    unfreeze: str = ""  # `model.unfreeze` if the encoder is trained along

    def __init__(self, cfg: Any):
        """Read the task's folder; `cfg` is as `ProbingTaskConfig`.

        Raises InputError if a setting is wrong, or `task.json`, or it is not the expected task, or
        its splits share files or songs.
        """
        self.cfg = cfg
        self.spec = read_spec(cfg.data)  # contents of `task.json`
        check_leakage(cfg.data)
        if cfg.decoder not in DECODERS:
            raise InputError(f"task.decoder {cfg.decoder!r}: one of {', '.join(DECODERS)}")
        if cfg.expected and cfg.expected != self.spec.name:
            raise InputError(
                f"{cfg.data}: holds the task {self.spec.name}, but this configuration is for "
                f"{cfg.expected}: give the --config-name of the task, another task.data, or "
                "task.expected=null for these settings all the same",
                with_options({"--config-name": None}),
            )
        batch_seconds = 40.0 if self.device == "cpu" else 640.0
        self.plan = WindowPlan(cfg.window_seconds, self.spec.of_kind.has_beats, batch_seconds)
        if self.plan.per_frame and samples_in(cfg.window_seconds) % FRAME_HOP:
            # Frames of later windows would lag behind the beats, more from window to window.
            raise InputError(
                f"task.window_seconds={cfg.window_seconds:g}: windows of beats consist of frames "
                f"of 0.02 s; give a multiple of that, such as {round(cfg.window_seconds * 50) / 50}"
            )
        self.output_dir = Path(cfg.output_dir)  # folder of the result files
        self._datasets: dict[str, ProbingDataset] = {}

    @property
    def device(self) -> str:
        """Device that computes features and trains heads: `cpu` or `cuda`."""
        return choose_device("cpu" if self.cfg.cpu else "auto")

    @cached_property
    def source(self) -> FeatureSource:
        """The encoder or front end."""
        return open_source(str(self.cfg.upstream), self.device, int(self.cfg.upstream_seed or 0))

    @cached_property
    def cache(self) -> FeatureCache:
        """The features computed so far."""
        limit, name = int(self.cfg.cache_limit_gb * 1e9), self.source.name
        identity = feature_identity(self.source, self.plan)
        return FeatureCache(self.cfg.cache_dir, identity, limit, name)

    @property
    def batches_at_once(self) -> int:
        """Mini-batches per training batch of the dataset; frames of beats are many in any case."""
        many = self.device == "cpu" and not (self.plan.per_frame or self.unfreeze)
        return _BATCHES_AT_ONCE if many else 1

    def encoder(self) -> Upstream:
        """Return the encoder to be trained along; a front end is an InputError."""
        if not isinstance(self.source, EncoderSource):
            raise InputError(f"model.unfreeze: {self.source.name} has nothing to train")
        return self.source.encoder

    def identity(self) -> Identity:
        """Identify the task, its clips and labels, and the upstream."""
        found = probing_identity(self.cfg.data, self.spec)
        return found | {"upstream": self.source.fingerprint[:16]}

    def dataset(self, split: str) -> ProbingDataset:
        """Read a split's labels, and compute the features that the cache lacks."""
        if split not in self._datasets:
            self._datasets[split] = self._read(split)
        return self._datasets[split]

    def _read(self, split: str) -> ProbingDataset:
        labels = ProbingSplit(self.cfg.data, split, self.spec)
        parts = enumerate(labels.segments.tolist())
        clips = [clip_at(labels.manifest.path(i), *part) for i, part in parts]
        shuffle, at_once = split == "train", self.batches_at_once if split == "train" else 1
        order = self.cfg.seed, shuffle, at_once
        if self.unfreeze:
            dataset: ProbingDataset = WaveformDataset(
                labels, clips, self.source.grid, self.plan, *order
            )
        else:
            self.cache.use(clip.key for clip in clips)
            fill(self.cache, self.source, self.plan, clips)
            dataset = ProbingDataset(labels, clips, self.cache, self.plan, *order)
        seconds = self.cfg.window_seconds
        length = f"{seconds:g} s" if seconds else "whole clips"
        logger.info("%s: %d clips, %d windows of %s", split, len(clips), len(dataset), length)
        return dataset

    def inputs(self) -> HeadInputs:
        """Describe features and outputs for the heads.

        Means and deviations are those of the training split if it has been read; otherwise
        placeholders for those of a checkpoint.
        """
        source, outputs = self.source, self.spec.num_outputs
        dimension = source.frame_dimension if self.plan.per_frame else source.dimension
        shape = len(source.layer_names), dimension
        found = {
            "feature_mean": np.zeros(shape),
            "feature_deviation": np.ones(shape),
            "target_mean": np.zeros(outputs),
            "target_deviation": np.ones(outputs),
        }
        train = self._datasets.get("train")
        if train is not None and source.standardise:
            vectors = np.concatenate([train.features(i) for i in range(len(train))])
            found["feature_mean"] = vectors.mean(axis=0, dtype=np.float64)
            found["feature_deviation"] = vectors.std(axis=0, dtype=np.float64) + 1e-6
        if train is not None and self.spec.of_kind.has_numbers:
            deviation = train.split.targets.std(axis=0)
            found["target_mean"] = train.split.targets.mean(axis=0)
            found["target_deviation"] = np.where(deviation > 0, deviation, 1.0)
        statistics = {name: torch.from_numpy(value).float() for name, value in found.items()}
        return HeadInputs(source.layer_names, dimension, outputs, source.fingerprint, **statistics)

    def judge(self, collector: Collector, epoch: int, last: bool) -> None:
        """Judge each head in training by its predictions of the split `CHOOSE_ON`.

        Raises InputError if no head has ever had a score.
        """
        scores = results.head_scores(collector)
        self.model.take_scores(torch.from_numpy(scores), epoch, last)
        if self.model.chosen_head() is None:
            raise InputError(
                f"{self.spec.metric} is not a number for any head: too few different labels in "
                f"{CHOOSE_ON}, or every model.learning_rates too high"
            )

    def write_table(self) -> None:
        """Write `probe.json` and `rows.csv`."""
        about = self.about() | self._audio("train", CHOOSE_ON)
        results.write_heads(self.output_dir, about, self.model.table())

    def score(self, split: str, collector: Collector) -> Scores:
        """Score the chosen head on a split, and write `SPLIT.json` and its predictions."""
        predictions = results.final_predictions(collector, DECODERS[self.cfg.decoder])
        scores = evaluate(self.spec, predictions)
        about = self.about() | self._audio(split)
        if self.spec.of_kind.has_beats:
            about["decoder"] = self.cfg.decoder
        file = results.write_scores(self.output_dir, split, about, scores, predictions)
        if scores.absent:
            reason = "no (or only) positive examples in this split"
            logger.warning("%s: no score for %s: %s", split, ", ".join(scores.absent), reason)
        chosen = about["layer"], about["learning_rate"]
        where = os.path.abspath(file)
        logger.info("%s: layer %s, learning rate %g; written to %s", split, *chosen, where)
        return scores

    def _audio(self, *splits: str) -> dict[str, Any]:
        """Digest the audio of the splits that were read, to tell other audio of the same names."""
        read = {name: self._datasets[name] for name in splits if name in self._datasets}
        found = {name: probing_audio(dataset.split.manifest) for name, dataset in read.items()}
        return {"audio": {name: digest for name, digest in found.items() if digest}}

    def about(self) -> dict[str, Any]:
        """Describe the probe for its result files: task, upstream, chosen head."""
        chosen = self.model.chosen_head()
        assert chosen is not None
        trained = f"fine-tuned ({self.unfreeze})" if self.unfreeze else ""
        return {
            "task": self.spec.name,
            "kind": self.spec.kind,
            "metric": self.spec.metric,
            "classes": list(self.spec.classes),
            "targets": list(self.spec.targets),
            "upstream": f"{self.source.name}, {trained}" if trained else self.source.name,
            "upstream_path": self.source.path,
            # Not the frozen model's, whose scores these are not.
            "fingerprint": f"{self.source.fingerprint} {trained}".strip(),
            "window_seconds": self.cfg.window_seconds,
            "layer": chosen.head.layer,
            "learning_rate": chosen.head.learning_rate,
            "valid_score": chosen.score,
            "best_epoch": chosen.epoch,
        }
