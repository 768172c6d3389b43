"""Train and score one probe in this process, without fairseq's trainer around each update.

Heads, batches, updates and files are those of fairseq-hydra-train and fairseq-validate. For many
probes of one encoder: a task's features stay on the device, the encoder is opened once, and no
process starts for the next task.
"""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from fairseq.data.iterators import EpochBatchIterator
from omegaconf import DictConfig, OmegaConf

from music_ssl_fairseq.errors import InputError
from music_ssl_fairseq.probing.config import MusicProbeConfig, MusicProbingConfig
from music_ssl_fairseq.probing.dataset import ProbingDataset
from music_ssl_fairseq.probing.experiment import CHOOSE_ON, ProbeExperiment
from music_ssl_fairseq.probing.features.source import FeatureSource
from music_ssl_fairseq.probing.heads.adam import RowAdam
from music_ssl_fairseq.probing.heads.fine_tuning import check_settings
from music_ssl_fairseq.probing.heads.model import HeadGrid
from music_ssl_fairseq.probing.heads.training import loss_and_logs, mini_batches, update
from music_ssl_fairseq.probing.scoring.collector import Collector


def settings(file: Path, overrides: dict[str, Any]) -> DictConfig:
    """Read a configuration of `examples/probing`, and add the defaults of what it leaves out.

    Args:
        overrides: values by their dotted names; those that hydra would give must be among them.
    """
    defaults = {
        "task": OmegaConf.structured(MusicProbingConfig),
        "model": OmegaConf.structured(MusicProbeConfig),
        "common": {"cpu": False},
    }
    for name in ("task", "model"):  # room for `_name`
        OmegaConf.set_struct(defaults[name], False)
    found = OmegaConf.merge(OmegaConf.create(defaults), OmegaConf.load(file))
    assert isinstance(found, DictConfig)
    for name, value in overrides.items():
        OmegaConf.update(found, name, value, force_add=True)
    return found


def run(cfg: DictConfig, source: FeatureSource, split: str = "test") -> Path:
    """Train the grid, and score on `split` the head chosen on validation.

    Args:
        cfg: as `settings` returns it; `task.output_dir` is the folder of the results.
        source: the open upstream that `model.upstream` names.

    Returns:
        The folder of the results.

    Raises:
        InputError: as `ProbeExperiment`.
    """
    if check_settings(cfg.model):
        raise InputError("model.unfreeze: fairseq-hydra-train alone trains encoders")
    probe = ProbeExperiment(cfg.task)
    probe.source = source
    device = torch.device(probe.device)
    training = _Windows(probe.dataset("train"), device)
    validation = _Windows(probe.dataset(CHOOSE_ON), device)
    model = probe.model = HeadGrid(cfg.model, probe.inputs()).to(device)
    optimizer = RowAdam(cfg.optimizer, list(model.parameters()))
    number, last = 0, cfg.optimization.max_epoch
    for epoch in range(1, last + 1):
        model.train()
        for indices in _batches(training.dataset, cfg.dataset.batch_size, cfg.common.seed, epoch):
            optimizer.set_heads(model.active.tolist(), model.learning_rates())
            model.set_num_updates(number)
            for batch in mini_batches(training.batch(indices, cfg.dataset.batch_size)):
                update(model, optimizer, batch, probe.spec.kind)
            number += 1
        probe.judge(_collect(probe, validation, cfg.dataset.batch_size_valid), epoch, epoch == last)
        if not len(model.active):
            break
    probe.write_table()
    model.scoring = True
    scored = _Windows(probe.dataset(split), device)
    probe.score(split, _collect(probe, scored, cfg.dataset.batch_size_valid))
    return probe.output_dir


def _batches(
    dataset: ProbingDataset, max_sentences: int, seed: int, epoch: int
) -> list[np.ndarray]:
    """Batches of windows in fairseq's order of an epoch."""
    dataset.set_epoch(epoch)
    batches = dataset.batch_by_size(dataset.ordered_indices(), max_sentences=max_sentences)
    iterator = EpochBatchIterator(dataset, dataset.collater, batches, seed=seed)
    return iterator.ordered_batches(epoch, fix_batches_to_gpus=False, shuffle=True)


class _Windows:
    """All windows of a split, collated once, on the device."""

    def __init__(self, dataset: ProbingDataset, device: torch.device):
        self.dataset = dataset
        whole = dataset.collater([dataset[i] for i in range(len(dataset))])
        self._device = device
        self._sizes = np.array(whole["sizes"])
        self._edges = np.cumsum([0, *whole["sizes"]])
        self._features = whole["net_input"]["features"].to(device)
        self._target = whole["target"].to(device)
        self._clip, self._first = whole["clip"], whole["first"]

    def __len__(self) -> int:
        return len(self._sizes)

    def batch(self, indices: np.ndarray, batch_size: int) -> dict[str, Any]:
        """Collate these windows, as the dataset does."""
        edges = [np.arange(self._edges[i], self._edges[i + 1]) for i in indices]
        vectors = torch.from_numpy(np.concatenate(edges)).to(self._device)
        items = torch.from_numpy(np.asarray(indices))
        return {
            "net_input": {"features": self._features[vectors]},
            "target": self._target[vectors],
            "clip": self._clip[items],
            "first": self._first[items],
            "sizes": self._sizes[indices].tolist(),
            "nsentences": len(indices),
            "ntokens": len(vectors),
            "batch_size": batch_size,
        }


@torch.no_grad()
def _collect(probe: ProbeExperiment, windows: _Windows, size: int) -> Collector:
    """Collect the outputs of all heads in training, or of the chosen one, over a split."""
    probe.model.eval()
    collector = Collector(windows.dataset)
    for first in range(0, len(windows), size):
        indices = np.arange(first, min(first + size, len(windows)))
        _, _, logs = loss_and_logs(probe.model, windows.batch(indices, size), probe.spec.kind)
        collector.add(logs["predictions"])
    return collector
