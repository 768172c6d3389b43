"""Train and score one probe in this process, without fairseq's trainer around each update.

Heads, batches, updates and files are those of fairseq-hydra-train and fairseq-validate. For many
probes of one encoder: a task's features stay on the device, the encoder is opened once, and no
process starts for the next task.
"""

import math
from collections.abc import Iterator, Sequence
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import torch
from fairseq.data.iterators import EpochBatchIterator
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from music_ssl_fairseq.errors import InputError
from music_ssl_fairseq.probing.config import PROBE_CONFIGS
from music_ssl_fairseq.probing.dataset import ProbingDataset
from music_ssl_fairseq.probing.experiment import CHOOSE_ON, ProbeExperiment
from music_ssl_fairseq.probing.features.source import FeatureSource
from music_ssl_fairseq.probing.heads.adam import RowAdam, RowAdamConfig
from music_ssl_fairseq.probing.heads.fine_tuning import check_settings
from music_ssl_fairseq.probing.heads.head_grid import HeadGrid
from music_ssl_fairseq.probing.heads.update import loss_and_logs, mini_batches, update
from music_ssl_fairseq.probing.scoring.results import Collector
from music_ssl_fairseq.runtime.settings import check_ranges
from music_ssl_fairseq.runtime.user_command import with_word

_MAX_DEVICE_BYTES = 4 << 30
"""Features of a split that are held whole; of larger ones each batch is read from the cache."""


def settings(overrides: dict[str, Any]) -> DictConfig:
    """Return the default settings with other values, by dotted names.

    The defaults equal those of examples/probing/config.yaml, which is not installed (a test
    compares them). `model.upstream` and the folders of `task` must be given.

    Raises InputError if there is no such setting, or it takes no such value.
    """
    found = OmegaConf.create(
        {
            "common": {"cpu": False, "seed": 1},
            **{group: OmegaConf.structured(config) for group, config in PROBE_CONFIGS.items()},
            "dataset": {"batch_size": 64, "batch_size_valid": 256},
            "optimization": {"max_epoch": 100},
            "optimizer": OmegaConf.structured(RowAdamConfig),
        }
    )
    OmegaConf.set_struct(found, True)
    for name, value in overrides.items():
        try:
            OmegaConf.update(found, name, value)
        except OmegaConfBaseException as error:
            reason = str(error).splitlines()[0]
            known = [f"{group!s}.{key}" for group in found for key in found[group] if key[0] != "_"]
            if name not in known:
                near = [other for other in known if other.startswith(name.split(".")[0])]
                reason += f"; there are {', '.join(near or known)}"
            raise InputError(f"{name}={value}: {reason}", with_word(name, known)) from None
    check_ranges(found, {**PROBE_CONFIGS, "optimizer": RowAdamConfig})
    return found


def run(cfg: DictConfig, source: FeatureSource, split: str = "test") -> Path:
    """Train the grid, and score on `split` the head chosen on validation.

    `source` is the open upstream that `model.upstream` names. The folder of the results,
    `task.output_dir`, is returned.
    """
    if check_settings(cfg.model):
        raise InputError("model.unfreeze: fairseq-hydra-train alone trains encoders")
    probe = ProbeExperiment(cfg.task)
    probe.source = source
    device = torch.device(probe.device)
    training = _Windows(probe.dataset("train"), device)
    validation = _Windows(probe.dataset(CHOOSE_ON), device)
    probe.dataset(split)  # what is wrong with it is found before training
    model = probe.model = HeadGrid(cfg.model, probe.inputs()).to(device)
    optimizer = RowAdam(cfg.optimizer, list(model.parameters()))
    number, last = 0, cfg.optimization.max_epoch or math.inf
    for epoch in count(1):
        model.train()
        optimizer.set_heads(model.active.tolist(), model.learning_rates())
        order = _batches(training.dataset, cfg.dataset.batch_size, cfg.common.seed, epoch)
        for sample in training.batches(order):
            model.set_num_updates(number)
            for batch in mini_batches(sample):
                update(model, optimizer, batch, probe.spec.of_kind)
            number += 1
        probe.judge(_collect(probe, validation, cfg.dataset.batch_size_valid), epoch, epoch == last)
        if epoch == last or not len(model.active):
            break
    probe.write_table()
    model.scoring = True
    scored = _Windows(probe.dataset(split), device)
    probe.score(split, _collect(probe, scored, cfg.dataset.batch_size_valid))
    return probe.output_dir


def _batches(
    dataset: ProbingDataset, max_sentences: int, seed: int, epoch: int
) -> list[np.ndarray]:
    """Return batches of windows in fairseq's order of an epoch."""
    dataset.set_epoch(epoch)
    batches = dataset.batch_by_size(dataset.ordered_indices(), max_sentences=max_sentences)
    iterator = EpochBatchIterator(dataset, dataset.collater, batches, seed=seed)
    return iterator.ordered_batches(epoch, fix_batches_to_gpus=False, shuffle=True)


class _Windows:
    """All windows of a split: collated once, on the device, unless they are too large."""

    def __init__(self, dataset: ProbingDataset, device: torch.device):
        self.dataset = dataset
        self._device = device
        everything = range(len(dataset))
        size = sum(map(dataset.size, everything)) * dataset.features(0)[0].nbytes
        self._whole = self._collate(everything) if size <= _MAX_DEVICE_BYTES else None

    def batches(self, order: Sequence[np.ndarray]) -> Iterator[dict[str, Any]]:
        """Collate these windows, batch by batch, as the dataset does."""
        whole = self._whole
        if whole is None:
            yield from map(self._collate, order)
            return
        windows, sizes = np.concatenate(order), np.array(whole["sizes"])
        first, count, stops = np.cumsum(sizes) - sizes, sizes[windows], np.cumsum(sizes[windows])
        numbers = np.arange(stops[-1]) + np.repeat(first[windows] - stops + count, count)
        # Copied to the device at once: each copy waits for all that runs there.
        vectors_of = torch.from_numpy(numbers).to(self._device)
        parts = vectors_of.split([int(sizes[indices].sum()) for indices in order])
        for indices, vectors in zip(order, parts, strict=True):
            items = torch.from_numpy(np.asarray(indices))
            yield {
                "net_input": {"features": whole["net_input"]["features"][vectors]},
                "target": whole["target"][vectors],
                "clip": whole["clip"][items],
                "first": whole["first"][items],
                "sizes": sizes[indices].tolist(),
                "nsentences": len(indices),
                "ntokens": len(vectors),
                "batch_size": self.dataset.batch_size,
            }

    def _collate(self, windows: Sequence[int] | np.ndarray) -> dict[str, Any]:
        found = self.dataset.collater(windows)
        features = found["net_input"]["features"].to(self._device)
        target = found["target"].to(self._device)
        return found | {"net_input": {"features": features}, "target": target}


@torch.no_grad()
def _collect(probe: ProbeExperiment, windows: _Windows, size: int) -> Collector:
    """Collect the outputs of all heads in training, or of the chosen one, over a split."""
    probe.model.eval()
    collector = Collector(windows.dataset)
    order = windows.dataset.batch_by_size(np.arange(len(windows.dataset)), max_sentences=size)
    for batch in windows.batches(order):
        _, _, logs = loss_and_logs(probe.model, batch, probe.spec.of_kind)
        collector.add(logs["predictions"])
    return collector
