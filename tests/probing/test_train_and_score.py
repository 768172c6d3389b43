"""A probe without fairseq's trainer: what fairseq-hydra-train and fairseq-validate give."""

import json
from pathlib import Path

import numpy as np
import pytest
from omegaconf import OmegaConf

from music_ssl_fairseq.probing import train_and_score
from music_ssl_fairseq.probing.features.source import open_source
from music_ssl_fairseq.probing.scoring.predictions import Predictions
from tests import EXAMPLES
from tests.probing.probing_data import train, validate, write_audio, write_probing


def test_its_defaults_are_those_of_the_example():
    example, ours = (
        OmegaConf.load(EXAMPLES / "probing" / "config.yaml"),
        train_and_score.settings({}),
    )
    shown = {
        (group, name): value
        for group in ours
        for name, value in OmegaConf.to_container(example[group]).items()
        if name in ours[group] and name != "_name" and not str(value).startswith("${")
    }
    assert len(shown) > 15
    different = {
        (group, name): value
        for (group, name), value in shown.items()
        if not OmegaConf.is_missing(ours[group], name) and ours[group][name] != value
    }
    assert different == {}


SETTINGS = {
    "task.window_seconds": 1,
    "model.hidden_size": 16,
    "optimization.max_epoch": 4,
    "model.learning_rates": [0.001, 0.01],
    "model.patience": 2,
    "dataset.batch_size": 5,
    "common.cpu": True,
}


@pytest.mark.parametrize("kind", ["multi-class", "beats"])
def test_it_gives_what_fairseq_gives(tmp_path, monkeypatch, kind):
    """Clips are trained in eight mini-batches at a time on a CPU, frames in one."""
    monkeypatch.chdir(tmp_path)
    write_audio(Path("audio"), 24)
    write_probing(Path("task"), Path("audio"), kind)
    overrides = [f"{name}={str(value).lower()}" for name, value in SETTINGS.items()]
    train(Path("task"), "logmel", Path("fairseq"), *overrides)
    validate(Path("task"), Path("fairseq"), "--cpu")
    values = {
        **SETTINGS,
        "model.upstream": "logmel",
        "task.data": "task",
        "task.output_dir": "direct",
        "task.cache_dir": "feature_cache",
    }
    if kind == "beats":  # as features that are too large to be held
        monkeypatch.setattr(train_and_score, "_MAX_DEVICE_BYTES", 1)
    train_and_score.run(train_and_score.settings(values), open_source("logmel"))
    assert Path("direct/rows.csv").read_text() == Path("fairseq/rows.csv").read_text()
    abouts = [json.loads(Path(run, "test.json").read_text()) for run in ("direct", "fairseq")]
    assert abouts[0] == abouts[1]
    one, other = (
        Predictions.load(Path(run, "test_predictions.npz")) for run in ("direct", "fairseq")
    )
    np.testing.assert_array_equal(one.outputs, other.outputs)
