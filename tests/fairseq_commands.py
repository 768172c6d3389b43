"""fairseq's commands, run in this process as a user types them, on a corpus made on the spot."""

import functools
import json
import re
import sys
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import numpy as np
from fairseq import checkpoint_utils
from fairseq_cli import hydra_train
from hydra._internal.hydra import Hydra
from hydra.core.config_store import ConfigStore

import music_ssl_fairseq
from manifests_tools import pretrain
from tests import EXAMPLES
from tests.audio_files import write_tone
from tests.options import with_defaults
from tests.tiny import SIZES

TINY = [
    # As many layers as the real ones, because targets are counted in layers.
    *(f"model.{name}='{value}'" for name, value in {**SIZES, "encoder_layers": 12}.items()),
    "dataset.num_workers=0",
    "dataset.batch_size=2",
    "optimization.update_freq=[1]",
    "common.log_interval=1",
    "common.tensorboard_logdir=null",
    "task.crop_seconds=1",
    "task.min_seconds=1",
]
ONE_UPDATE = ["optimization.max_update=1", "dataset.disable_validation=true"]
SHALLOW = {
    "music_hubert": [*TINY, "model.encoder_layers=2"],
    "music2vec": [*TINY, "model.encoder_layers=2", "model.average_top_k_layers=2"],
}
"""For tests that count no layers: trained in a third of the time."""


def compose_quickly() -> None:
    """Spare hydra what takes most of the time that it composes a configuration.

    It copies its store of all configurations, though it copies each again as it reads it; and it
    composes everything twice, of which the first time is for `hydra.mode`, which nothing here sets.
    fairseq stores its own configurations again for each command.
    """
    ConfigStore.__deepcopy__ = lambda store, _: store
    Hydra.get_mode = lambda *_, **__: None
    hydra_train.hydra_init = functools.cache(hydra_train.hydra_init)


compose_quickly()


PACE = {"wps", "ups", "wall", "train_wall", "audio_seconds_per_second", "eta_hours"}
"""What a run logs of its pace, which no two runs share."""


def make_corpus(folder: Path, k: int = 12, sample_rate: int | None = None) -> Path:
    """Nine tracks of three albums in `music/`, `manifests/` of them, and random `labels/`."""
    for i in range(9):
        suffix, rate = (".flac", 16000) if i % 3 else (".ogg", sample_rate or 22050)
        write_tone(folder / "music" / f"album {i % 3}" / f"{i}{suffix}", 2 + i / 4, rate, seed=i)
    with_defaults(pretrain)(root=str(folder / "music"), out=str(folder / "manifests"), workers=1)
    rng = np.random.default_rng(0)
    labels = folder / "labels"
    labels.mkdir()
    for split in ("train", "valid"):
        lines = (folder / "manifests" / f"{split}.tsv").read_text().splitlines()[1:]
        with (labels / f"{split}.km").open("w") as file:
            for line in lines:
                frames = 1 + (int(line.split("\t")[1]) - 400) // 160
                file.write(" ".join(map(str, rng.integers(0, k, frames))) + "\n")
    (labels / "dict.km.txt").write_text("".join(f"{unit} 1\n" for unit in range(k)))
    (labels / "metadata.json").write_text(json.dumps({"label_rate": 100, "k": k}))
    return folder


def train(family: str, *overrides: str, config_name: str | None = None) -> None:
    """`fairseq-hydra-train --config-dir examples/FAMILY [--config-name ...] OVERRIDES`.

    What our task does as the program ends is done as this returns: no worker is left.
    """
    from music_ssl_fairseq.tasks import pretraining
    from music_ssl_fairseq.training.interruption import interruption

    # fairseq imports nothing of a user_dir whose package is imported already, as it is here.
    music_ssl_fairseq.register()
    # The best loss so far lives in an attribute of a function: a new process would not have it.
    vars(checkpoint_utils.save_checkpoint).pop("best", None)
    name = ["--config-name", config_name] if config_name else []
    sys.argv = [
        "fairseq-hydra-train",
        *("--config-dir", str(EXAMPLES / family)),
        *name,
        *overrides,
    ]
    with ExitStack() as exits:
        at_exit = SimpleNamespace(register=exits.callback)
        exits.callback(interruption.release)
        with mock.patch.object(pretraining, "atexit", at_exit):
            hydra_train.cli_main()


def validate(checkpoint: Path, data: Path, task: str, *options: str) -> None:
    """`fairseq-validate DATA --path CHECKPOINT ...`."""
    from fairseq_cli.validate import cli_main

    sys.argv = [
        "fairseq-validate",
        str(data),
        *("--path", str(checkpoint), "--task", task),
        *("--user-dir", str(EXAMPLES.parent / "music_ssl_fairseq")),
        *("--valid-subset", "valid", "--batch-size", "2", "--num-workers", "0"),
        *("--log-format", "json", *options),
    ]
    cli_main()


def logged(run: Path, kind: str) -> list[dict[str, float]]:
    """Return a run's log entries under `train_inner`, `train` or `valid`, in order."""
    lines = (run / "hydra_train.log").read_text().splitlines()
    found = [re.search(rf"\[{kind}\]\[INFO\] - (\{{.*)", line) for line in lines]
    return [
        {key: float(value) for key, value in json.loads(match[1]).items()}
        for match in found
        if match
    ]
