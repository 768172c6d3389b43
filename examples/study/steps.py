"""The steps of one row: manifests, labels, training, judgement. Each leaves what is done alone."""

import json
import os
import shlex
import shutil
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import results
from places import Places, manifest_digest
from processes import Call, Processes, Shares, last_words
from rows import EXAMPLES, Row

from music_ssl_fairseq.errors import InputError
from music_ssl_fairseq.runtime.files import atomic_path
from music_ssl_fairseq.runtime.texts import read_object

TRAIN = [
    *(sys.executable, "-c"),
    "import sys; sys.argv[0] = 'fairseq-hydra-train'; "
    "from fairseq_cli.hydra_train import cli_main; cli_main()",
]


@dataclass
class Steps:
    """Runs the commands of rows.

    Attributes:
        workers: processes of manifests and labels; `loaders` are those of one training.
        call: how commands are run, by default in processes.
    """

    places: Places
    workers: int = 1
    loaders: int = 5
    call: Call = field(default_factory=Processes)

    def __post_init__(self) -> None:
        self.table = self.places.table
        self.shares = Shares()

    # Data

    def make_manifests(self, corpus: str) -> None:
        """List a corpus, unless the same folder has been listed.

        Raises:
            InputError: if its folder is not named, or is not there.
        """
        out, root = self.places.manifests(corpus), self.places.corpora.get(corpus)
        if root is None or not root.is_dir():
            raise InputError(
                f"--{corpus} {root or ''}: name the folder of the corpus (docs/study.md)"
            )
        if _root_of(out) != root.resolve():
            command = [sys.executable, "-m", "manifests_tools", "pretrain", "--root", str(root)]
            command += ["--out", str(out), "--workers", str(self.workers), "--force"]
            if self.places.miniature:
                command += ["--group-by", "file", "--valid-share", "0.2"]
            log = self.places.log(f"manifests-{corpus}")
            if self.call(command, log, {}):
                raise InputError(f"{root}: no manifests: {last_words(log)}")
        self.places.data[corpus] = manifest_digest(out)

    def label(self, corpus: str, name: str, workers: int) -> bool:
        """Make one set of labels; the labeler leaves a finished one as it is."""
        about, out = self.table.labels[name], self.places.labels(corpus, name)
        source, kept = self.table.source_of(name), self.places.kept_labels(corpus, name)
        if source and kept.exists():
            shutil.unpack_archive(kept, out)
            return True
        command = [sys.executable, "-m", "music_ssl_fairseq.label", "--k", str(about["k"])]
        command += [
            "--features",
            about["features"],
            "--manifests",
            str(self.places.manifests(corpus)),
        ]
        command += ["--labels", str(out), "--workers", str(workers)]
        if source:
            command += ["--layer", str(about["layer"])]
            command += ["--checkpoint", str(self.places.checkpoint(source))]
        if self.call(command, self.places.log(f"labels-{corpus}-{name}"), {}):
            return False
        if source:
            kept.parent.mkdir(parents=True, exist_ok=True)
            with atomic_path(kept) as temporary:
                made = shutil.make_archive(str(temporary), "zip", out)
                os.replace(made, temporary)
        return True

    # Training

    def train_command(self, row: Row) -> list[str]:
        """Return the training's command, as a user would type it."""
        labels = [str(self.places.labels(row.corpus, name).resolve()) for name in row.labels]
        updates, manifests = row.updates(), self.places.manifests(row.corpus).resolve()
        overrides: dict[str, Any] = {
            "hydra.run.dir": self.places.run(row).resolve(),
            "task.data": manifests,
            **({"task.label_dir": f"[{','.join(labels)}]"} if labels else {}),
            "common.seed": row.seed,
            "common.tensorboard_logdir": "null",
            "common.log_interval": max(1, updates // 80),
            "optimization.max_update": updates,
            "dataset.validate_interval_updates": max(1, updates // 4),
            "dataset.num_workers": self.loaders,
            "checkpoint.save_interval_updates": max(1, updates // 4),
            **({"model.init_from": self._init_from(row)} if row.init else {}),
            **row.overrides,
        }
        options = ["--config-dir", str(EXAMPLES / row.family), "--config-name", row.config]
        return [*options, *(f"{name}={value}" for name, value in overrides.items())]

    def _init_from(self, row: Row) -> Path:
        return self.places.checkpoint(self.table.row(row.init, row.seed)).resolve()

    def is_trained(self, row: Row) -> bool:
        """Return whether the run has ended."""
        return self._stamp(row).exists() and self.places.checkpoint(row).exists()

    def _stamp(self, row: Row) -> Path:
        return self.places.run(row) / "trained.json"

    def spent(self, row: Row) -> dict[str, float]:
        """Return seconds of a training so far, and its share of the GPU's."""
        try:
            return read_object(self.places.run(row) / "spent.json")
        except InputError:
            return {"wall_seconds": 0.0, "gpu_seconds": 0.0}

    def train(self, row: Row, gpu: str) -> bool:
        """Train a row to its end, or until it is stopped; it resumes from its last checkpoint."""
        if self.is_trained(row):
            return True
        start = time.monotonic()
        environment = {"CUDA_VISIBLE_DEVICES": gpu, "OMP_NUM_THREADS": "2"}
        with self.shares.of(gpu) as share:
            status = self.call(
                [*TRAIN, *self.train_command(row)], self.places.log(row.id), environment
            )
        spent = self.spent(row)
        spent["wall_seconds"] += time.monotonic() - start
        spent["gpu_seconds"] += share[0]
        ended = not status and self.places.checkpoint(row).exists()
        if self.places.run(row).exists():
            for file in [
                self.places.run(row) / "spent.json",
                *([self._stamp(row)] if ended else []),
            ]:
                with atomic_path(file) as temporary:
                    temporary.write_text(json.dumps(spent))
        if ended:
            for file in self.places.checkpoint(row).parent.glob("checkpoint_*.pt"):
                if file != self.places.checkpoint(row):
                    file.unlink()  # of 1.1 GB each
        return ended

    # Judgement

    def judge(self, row: Row, gpu: str) -> bool:
        """Probe a row on every task, and write its result; False if a probe has not ended."""
        encoder = row.encoder or str(self.places.checkpoint(row))
        out = self.places.work / "judge" / self.places.run(row).name
        command = [sys.executable, str(EXAMPLES / "open_tasks/judge.py")]
        command += [f"random:{encoder}" if row.random else encoder, "--out", str(out)]
        command += ["--data", str(self.places.judge_data), "--tasks", ",".join(self.places.tasks)]
        command += ["--small", "--cpu"] if self.places.miniature else []
        environment = {"CUDA_VISIBLE_DEVICES": gpu, "OMP_NUM_THREADS": "3"}
        start, log = time.monotonic(), self.places.log(f"judge-{row.id}")
        if self.call(command, log, environment):
            return False
        found = {**self._about(row), "judge_seconds": round(time.monotonic() - start, 1)}
        run = self.places.run(row) if row.trained else None
        form = "small" if self.places.miniature else "full"
        results.write(self.places.results, row.id, found, out / form / "probes", run)
        shutil.rmtree(out / "feature_cache", ignore_errors=True)  # gigabytes per encoder
        return True

    def _about(self, row: Row) -> dict[str, Any]:
        made_of = self.places.made_of(row)
        found = {**made_of.pop("row"), "made_of": made_of, "device": device()}
        if row.trained:
            command = shlex.join(["fairseq-hydra-train", *self.train_command(row)])
            work = str(self.places.work.resolve())
            found["command"] = command.replace(work, "WORK").replace(str(EXAMPLES), "examples")
            found["updates"] = row.updates()
            found |= {name: round(value, 1) for name, value in self.spent(row).items()}
        return found


def _root_of(manifests: Path) -> Path | None:
    try:
        lines = (manifests / "train.tsv").read_text("utf-8", "surrogateescape").splitlines()
        return Path(lines[0]).resolve()
    except (OSError, IndexError):
        return None


def device() -> str:
    """Name of the GPU, or `cpu`."""
    import torch

    return torch.cuda.get_device_name(0) if torch.cuda.is_available() else "cpu"
