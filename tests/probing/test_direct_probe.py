"""A probe without fairseq's trainer: what fairseq-hydra-train and fairseq-validate give."""

import json
from pathlib import Path

import numpy as np
import pytest

from music_ssl_fairseq.probing import direct
from music_ssl_fairseq.probing.features.source import open_source
from music_ssl_fairseq.probing.scoring.predictions import Predictions
from tests import EXAMPLES
from tests.probing.probing_data import train, validate, write_audio, write_probing

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
    config = EXAMPLES / "probing" / "config.yaml"
    direct.run(direct.settings(config, values), open_source("logmel"))
    assert Path("direct/rows.csv").read_text() == Path("fairseq/rows.csv").read_text()
    abouts = [json.loads(Path(run, "test.json").read_text()) for run in ("direct", "fairseq")]
    assert abouts[0] == abouts[1]
    one, other = (
        Predictions.load(Path(run, "test_predictions.npz")) for run in ("direct", "fairseq")
    )
    np.testing.assert_array_equal(one.outputs, other.outputs)
