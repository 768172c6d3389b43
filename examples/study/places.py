"""Where the files of a study are. Names hold a digest of what decides the contents."""

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import results
from omegaconf import OmegaConf
from rows import EXAMPLES, Row, Table, digest

from music_ssl_fairseq.data.run_identity import settings_identity
from music_ssl_fairseq.errors import InputError

MINIATURE_TASKS = ("pitch", "instrument")


@dataclass
class Places:
    """The folders of a study.

    Attributes:
        judge_data: folder of the open tasks' data.
        corpora: folder of each corpus.
        data: digest of each corpus that has been listed.
    """

    table: Table
    work: Path
    results: Path
    judge_data: Path
    corpora: dict[str, Path]
    miniature: bool = False
    data: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._digests: dict[str, str] = {}
        self.judge = _judge(self.judge_data, self.tasks, self.miniature)

    @property
    def tasks(self) -> Sequence[str]:
        """Name the tasks that the judge probes."""
        if self.miniature:
            return MINIATURE_TASKS
        return [task.name for task in results.open_tasks().TASKS]

    def made_of(self, row: Row) -> dict[str, Any]:
        """Return what makes a result the same: settings, data and judge."""
        weights = self.table.made_of(row, self.data)
        return {**weights, "judge": self.judge, "miniature": self.miniature}

    def is_done(self, row: Row) -> bool:
        return results.is_done(self.results, row.id, self.made_of(row))

    def run(self, row: Row) -> Path:
        return self.work / "runs" / f"{row.id}-{self._weights(row)[:6]}"

    def _weights(self, row: Row) -> str:
        if row.id not in self._digests:
            self._digests[row.id] = digest(self.table.made_of(row, self.data))
        return self._digests[row.id]

    def checkpoint(self, row: Row) -> Path:
        return self.run(row) / "checkpoints" / "checkpoint_last.pt"

    def labels(self, corpus: str, name: str) -> Path:
        source = self.table.source_of(name)
        made_of = [self.table.labels[name], self.data[corpus]]
        made_of += [self._weights(source)] if source else []
        return self.work / "labels" / f"{corpus}-{name}-{digest(made_of)[:6]}"

    def kept_labels(self, corpus: str, name: str) -> Path:
        """Return where labels of a layer are kept: another machine lacks the checkpoint."""
        return self.results / "labels" / f"{self.labels(corpus, name).name}.zip"

    def manifests(self, corpus: str) -> Path:
        return self.work / "manifests" / corpus

    def log(self, name: str) -> Path:
        return self.work / "logs" / f"{name}.log"


def _judge(data: Path, names: Sequence[str], small: bool) -> dict[str, Any]:
    """Say what decides a score: per task its settings, list and sound, and those of the probes.

    Raises:
        InputError: if the list of a task or a clip is not there.
    """
    from music_ssl_fairseq.probing.config import PROBE_CONFIGS  # slow to import

    open_tasks, tasks = results.open_tasks(), {}
    for task in open_tasks.chosen(names, data):
        rows = open_tasks.rows_of(task, data, small)
        try:
            sound = open_tasks.sound(data, [path for path, _, _ in rows])
        except OSError as error:
            raise InputError(
                f"--judge {data}: a clip of {task.name} cannot be read ({error.filename}: "
                f"{error.strerror}); make what is missing with examples/open_tasks/build.py"
            ) from None
        about = {"kind": task.kind, "metric": task.metric, "settings": task.settings}
        tasks[task.name] = {**about, "list": digest(rows), "sound": sound[:16]}
    probing: Any = OmegaConf.to_container(OmegaConf.load(EXAMPLES / "probing/config.yaml"))
    settings = settings_identity({name: probing[name] for name in PROBE_CONFIGS}, PROBE_CONFIGS)
    others = {name: probing[name] for name in ("optimization", "optimizer")}
    others["dataset.batch_size"] = probing["dataset"]["batch_size"]
    return {"tasks": tasks, "probing": {**settings, **others}}


def manifest_digest(folder: Path) -> str:
    """Digest of tracks' names without suffixes, and lengths: FLAC and Opus copies are alike."""
    lines = []
    for split in ("train", "valid"):
        text = (folder / f"{split}.tsv").read_text("utf-8", "surrogateescape")
        for line in text.splitlines()[1:]:
            name, length = line.split("\t")
            lines.append(f"{split} {os.path.splitext(name)[0]} {length}")
    return digest(sorted(lines))
