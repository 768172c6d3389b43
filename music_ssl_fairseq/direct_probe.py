"""One probe trained and scored in this process: heads, batches, updates and files are those of
fairseq-hydra-train and fairseq-validate, without what fairseq does around each update.

For many probes of one encoder: a task's features lie on the device as a whole, the encoder is
opened once, and the next task follows without a start of its own.
"""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from omegaconf import DictConfig, OmegaConf

from music_ssl_fairseq.criterions.music_probe import MusicProbeCriterion
from music_ssl_fairseq.models.music_probe import MusicProbeConfig, MusicProbeModel
from music_ssl_fairseq.probing.dataset import ProbingDataset
from music_ssl_fairseq.probing.features.source import Source
from music_ssl_fairseq.probing.heads.adam import RowAdam
from music_ssl_fairseq.probing.scoring import results
from music_ssl_fairseq.probing.scoring.collector import Collector
from music_ssl_fairseq.probing.scoring.selection import row_scores
from music_ssl_fairseq.tasks.music_probing import (
    CHOOSE_ON,
    MusicProbingConfig,
    MusicProbingTask,
)


def settings(file: Path, overrides: dict[str, Any]) -> DictConfig:
    """A configuration of `examples/probing`, with the defaults of what it leaves out.

    Args:
        overrides: values by their dotted names; those that hydra would give must be among them.
    """
    defaults = {
        "task": OmegaConf.structured(MusicProbingConfig),
        "model": OmegaConf.structured(MusicProbeConfig),
        "common": {"cpu": False},
    }
    read = OmegaConf.load(file)
    for name in ("task", "model"):  # fairseq's own names of what they configure
        OmegaConf.set_struct(defaults[name], False)
    found = OmegaConf.merge(OmegaConf.create(defaults), read)
    assert isinstance(found, DictConfig)
    for name, value in overrides.items():
        OmegaConf.update(found, name, value, force_add=True)
    return found


def run(cfg: DictConfig, source: Source, split: str = "test") -> Path:
    """Train the grid, score the head chosen on validation on `split`; the folder of its files.

    Args:
        cfg: as `settings` returns it; `task.output_dir` is the folder.
        source: what `model.upstream` names, open.

    Raises:
        InputError: as `MusicProbingTask`.
    """
    task = MusicProbingTask(cfg.task)
    task.source = source
    model: MusicProbeModel = task.build_model(cfg.model)
    device = torch.device(task.device())
    model.to(device)
    criterion = MusicProbeCriterion(task)
    optimizer = RowAdam(cfg.optimizer, list(model.parameters()))
    task.load_dataset(CHOOSE_ON)
    training = _Windows(task.datasets["train"], device)
    validation = _Windows(task.datasets[CHOOSE_ON], device)
    size, updates = cfg.dataset.batch_size, 0
    for epoch in range(1, cfg.optimization.max_epoch + 1):
        batches = task.get_batch_iterator(
            task.datasets["train"], max_sentences=size, seed=cfg.common.seed, epoch=epoch
        ).ordered_batches(epoch, fix_batches_to_gpus=False, shuffle=True)
        for indices in batches:
            _update(task, model, criterion, optimizer, training.batch(indices, size), updates)
            updates += 1
        collector = _collect(model, criterion, validation, cfg.dataset.batch_size_valid)
        scores = row_scores(collector, collector.dataset.split.targets)
        last = epoch == cfg.optimization.max_epoch
        model.take_scores(torch.from_numpy(scores), epoch, last)
        if not len(model.active):
            break
        task.follow(optimizer, model)
    folder = Path(cfg.task.output_dir)
    results.write_rows(folder, task.about(), task.row_table())
    task.load_dataset(split)
    model.scoring = True
    windows = _Windows(task.datasets[split], device)
    task.score(split, _collect(model, criterion, windows, cfg.dataset.batch_size_valid))
    return folder


class _Windows:
    """All windows of a split, collated once, on the device."""

    def __init__(self, dataset: ProbingDataset, device: torch.device):
        self.dataset = dataset
        whole = dataset.collater([dataset[i] for i in range(len(dataset))])
        self._device = device
        self._rows = np.array(whole["rows"])
        self._edges = np.cumsum([0, *whole["rows"]])
        self._features = whole["net_input"]["features"].to(device)
        self._target = whole["target"].to(device)
        self._clip, self._first = whole["clip"], whole["first"]

    def __len__(self) -> int:
        return len(self._rows)

    def batch(self, indices: np.ndarray, batch_size: int) -> dict[str, Any]:
        """What the dataset's collater makes of these windows."""
        edges = [np.arange(self._edges[i], self._edges[i + 1]) for i in indices]
        rows = torch.from_numpy(np.concatenate(edges)).to(self._device)
        items = torch.from_numpy(np.asarray(indices))
        return {
            "net_input": {"features": self._features[rows]},
            "target": self._target[rows],
            "clip": self._clip[items],
            "first": self._first[items],
            "rows": self._rows[indices].tolist(),
            "nsentences": len(indices),
            "ntokens": len(rows),
            "batch_size": batch_size,
        }


def _update(
    task: MusicProbingTask,
    model: MusicProbeModel,
    criterion: MusicProbeCriterion,
    optimizer: RowAdam,
    batch: dict[str, Any],
    number: int,
) -> None:
    """One update, as fairseq's trainer makes it."""
    model.train()
    criterion.train()
    optimizer.zero_grad()
    _, size, _ = task.train_step(batch, model, criterion, optimizer, number)
    optimizer.multiply_grads(1 / size)
    task.optimizer_step(optimizer, model, number)


@torch.no_grad()
def _collect(
    model: MusicProbeModel, criterion: MusicProbeCriterion, windows: _Windows, size: int
) -> Collector:
    """Outputs of all rows, or of the chosen one, over a split."""
    model.eval()
    criterion.eval()
    collector = Collector(windows.dataset)
    for first in range(0, len(windows), size):
        indices = np.arange(first, min(first + size, len(windows)))
        _, _, logs = criterion(model, windows.batch(indices, size))
        collector.add(logs["predictions"])
    return collector
