"""Adapters of other benchmarks, on tasks of tones. They run where the benchmark is installed."""

import io
import json
import os
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from music_ssl_fairseq.errors import InputError
from tests import ROOT, checkpoints, tiny
from tests.audio_files import tone

TASK = """
from xares.task import TaskConfig

def tones_config(encoder):
    return TaskConfig(
        name="tones", encoder=encoder, env_root={root!r}, output_dim=2, epochs=2,
        batch_size_train=4, eval_weight=8, num_encoder_workers=0,
        label_processor=lambda about: about["label"],
    )
"""


@pytest.fixture
def checkpoint(tmp_path) -> Path:
    torch.manual_seed(0)
    return checkpoints.write(tmp_path / "tiny.pt", "music_hubert", tiny.music_hubert())


def test_mteb_scores_an_encoder(checkpoint, tmp_path):
    mteb = pytest.importorskip("mteb")
    pytest.importorskip("torchcodec")
    from mteb.mocks.mock_tasks.classification import MockAudioClassification
    from mteb.mocks.mock_tasks.pair_classification import MockAudioPairClassification

    from examples.benchmarks.mteb_model import Encoder

    encoder = Encoder(str(checkpoint), layer=-1, device="cpu")
    for task in (MockAudioClassification(), MockAudioPairClassification()):
        results = mteb.evaluate(encoder, task, cache=mteb.ResultCache(tmp_path / "cache"))
        assert 0 <= results.task_results[0].get_score() <= 1
    assert list((tmp_path / "cache").rglob(f"{encoder.encoder.fingerprint[:16]}/Mock*.json"))


def test_mteb_has_a_vector_per_clip_of_any_rate_and_length(checkpoint):
    pytest.importorskip("mteb")
    from examples.benchmarks.mteb_model import Encoder

    encoder = Encoder(str(checkpoint), device="cpu")
    clips = [(tone(1.0)[:, 0], 16_000), (tone(0.5, 44_100, 2).T, 44_100), (np.ones(50), 16_000)]
    batch = {"audio": [{"array": array, "sampling_rate": rate} for array, rate in clips]}
    vectors = encoder.encode([batch, batch])
    assert vectors.shape == (6, 32)
    np.testing.assert_array_equal(vectors[0], encoder.encoder.embed(clips[0][0], 16_000)[0])


def write_tars(folder: Path) -> None:
    folder.mkdir()
    for split in ("train", "valid", "test"):
        with tarfile.open(folder / f"{split}_0.tar", "w") as tar:
            for i in range(12):  # ten neighbours
                wave, about = io.BytesIO(), json.dumps({"label": i % 2}).encode()
                samples = np.sin(2 * np.pi * (200, 1200)[i % 2] * np.arange(16_000) / 16_000)
                soundfile.write(wave, (0.3 * samples).astype(np.float32), 16_000, format="WAV")
                for suffix, content in (("wav", wave.getvalue()), ("json", about)):
                    info = tarfile.TarInfo(f"{split}{i}.{suffix}")
                    info.size = len(content)
                    tar.addfile(info, io.BytesIO(content))
    (folder / ".audio_tar_ready").touch()


def test_xares_scores_an_encoder(checkpoint, tmp_path):
    pytest.importorskip("xares.task")
    pytest.importorskip("torchcodec")
    write_tars(tmp_path / "tones")
    (tmp_path / "tones_task.py").write_text(TASK.format(root=str(tmp_path)))
    environment = {"PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}", "MUSIC_SSL_LAYER": "2"}
    environment |= {"MUSIC_SSL_CHECKPOINT": str(checkpoint)}
    done = subprocess.run(
        [
            *(sys.executable, "-m", "xares.run", "examples/benchmarks/xares_encoder.py"),
            *("tones_task.py", "--max-jobs", "0", "--from-stage", "1"),
        ],
        cwd=ROOT,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert "Weighted Average MLP Score" in done.stdout
    (scores,) = (tmp_path / "tones" / "checkpoints").glob("Music*Layer2Encoder/mlp_score.txt")
    assert 0 <= float(scores.read_text().splitlines()[0]) <= 1


def test_xares_takes_a_layer_and_long_clips(checkpoint, monkeypatch):
    from examples.benchmarks.xares_encoder import MusicSslEncoder

    monkeypatch.delenv("MUSIC_SSL_CHECKPOINT", raising=False)
    with pytest.raises(InputError, match="MUSIC_SSL_CHECKPOINT is not set"):
        MusicSslEncoder()
    monkeypatch.setenv("MUSIC_SSL_CHECKPOINT", str(checkpoint))
    mean = MusicSslEncoder()
    monkeypatch.setenv("MUSIC_SSL_LAYER", "2")
    layer = MusicSslEncoder()
    assert type(mean).__name__ != type(layer).__name__
    assert type(layer).__name__.endswith("Layer2Encoder")
    audio = torch.randn(2, 50_000)
    assert layer(audio).shape == (2, 156, layer.output_dim)
    torch.testing.assert_close(layer(audio), layer.model.layers(audio)[2])
    torch.testing.assert_close(mean(audio), torch.stack(mean.model.layers(audio)[1:]).mean(0))
    monkeypatch.setattr("examples.benchmarks.xares_encoder._WHOLE_SECONDS", 1)
    torch.testing.assert_close(layer(audio), layer.model.layers(audio)[2])
    assert (layer.sampling_rate, layer.hop_size_in_ms) == (16_000, 20)
    monkeypatch.setenv("MUSIC_SSL_LAYER", "x")
    with pytest.raises(InputError, match="MUSIC_SSL_LAYER=x: expected a number"):
        MusicSslEncoder()
