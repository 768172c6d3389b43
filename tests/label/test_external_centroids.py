"""Centroids from elsewhere."""

import json
from pathlib import Path

import joblib
import numpy as np
import pytest
from sklearn.cluster import MiniBatchKMeans

from music_ssl_fairseq.data.manifest import write_manifest
from music_ssl_fairseq.errors import InputError
from music_ssl_fairseq.label.__main__ import main
from music_ssl_fairseq.label.external_centroids import load_centroids
from tests.audio_files import write_tone


def learned(folder: Path, **options) -> Path:
    """What fairseq's learn_kmeans.py writes, from noise of 39 values."""
    frames = np.random.default_rng(0).normal(0, 10, (300, 39)).astype(np.float32)
    model = MiniBatchKMeans(6, n_init=1, random_state=0).fit(frames)
    joblib.dump(model, folder / "km.bin", **options)
    return folder / "km.bin"


@pytest.mark.parametrize("compress", [0, 3])
def test_a_pickle_is_not_opened_but_its_conversion_explained(tmp_path, monkeypatch, compress):
    file = learned(tmp_path, compress=compress)
    with pytest.raises(InputError, match="can run any code") as caught:
        load_centroids(file)
    command = str(caught.value).partition('python -c "')[2].rstrip('"')
    monkeypatch.chdir(tmp_path)
    exec(command, {})
    converted = load_centroids(tmp_path / "centroids.npy")
    np.testing.assert_array_equal(converted, joblib.load(file).cluster_centers_)


def test_given_centroids_are_assigned(tmp_path, capsys):
    write_tone(tmp_path / "music" / "a.wav", 2)
    write_manifest(tmp_path / "train.tsv", tmp_path / "music", [("a.wav", 32_000)])
    centroids = np.random.default_rng(0).normal(0, 20, (6, 39))
    np.save(tmp_path / "mine.npy", centroids)
    arguments = [
        *("--manifests", str(tmp_path), "--labels", str(tmp_path / "labels"), "--workers", "1"),
        *("--centroids", str(tmp_path / "mine.npy")),
    ]
    assert main(arguments) == 0
    found = np.load(tmp_path / "labels" / "centroids.npy")
    np.testing.assert_array_equal(found, centroids.astype(np.float32))
    metadata = json.loads((tmp_path / "labels" / "metadata.json").read_text())
    assert metadata["k"] == 6
    assert metadata["fitted_by"] == "given as mine.npy"
    assert metadata["train_inertia"] is None
    assert len((tmp_path / "labels" / "train.km").read_text().split()) == 198
    assert main([*arguments, "--report"]) == 0
    assert main(arguments) == 0
    theirs = str(tmp_path / "labels" / "centroids.npy")
    again = [*arguments[:3], str(tmp_path / "again"), "--centroids", theirs]
    assert main(again) == 0
    file = tmp_path / "labels" / "metadata.json"
    file.write_text(json.dumps({**metadata, "features": "deep", "layer": 6}))
    assert main([*again, "--force"]) == 1
    assert "says that its centroids are of features deep, not mfcc" in capsys.readouterr().err
    np.save(tmp_path / "mine.npy", centroids[:, :20])
    assert main([*arguments, "--force"]) == 1
    assert "6 centroids of 20 values, but mfcc has 39 per frame" in capsys.readouterr().err
    np.save(tmp_path / "mine.npy", 1000 * np.arange(6)[:, None] + np.zeros(39))  # another scale
    assert main([*arguments, "--force"]) == 0
    assert "train: one unit has 100.0 % of all labels" in capsys.readouterr().err


@pytest.mark.parametrize(
    "content",
    [
        np.zeros(3),
        np.zeros((0, 3)),
        np.full((2, 3), np.nan),
        np.full((2, 3), 1e300),
        np.array([["a"]]),
    ],
)
def test_arrays_that_are_no_centroids(tmp_path, content):
    np.save(tmp_path / "c.npy", content)
    with pytest.raises(InputError, match=r"expected|finite"):
        load_centroids(tmp_path / "c.npy")


def test_files_that_are_no_arrays(tmp_path):
    with pytest.raises(InputError, match="no such file"):
        load_centroids(tmp_path / "none.npy")
    (tmp_path / "c.npy").write_text("hello")
    with pytest.raises(InputError, match=r"not a \.npy file"):
        load_centroids(tmp_path / "c.npy")
    np.save(tmp_path / "c.npy", np.array([object()]), allow_pickle=True)
    with pytest.raises(InputError, match=r"not a \.npy file"):
        load_centroids(tmp_path / "c.npy")
