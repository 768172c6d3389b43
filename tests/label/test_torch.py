"""K-means in torch, on the CPU here, against faiss and numpy."""

from functools import partial

import numpy as np
import pytest
import torch

from music_ssl_fairseq.errors import InputError
from music_ssl_fairseq.features.mfcc import Mfcc
from music_ssl_fairseq.label import torch_kmeans
from music_ssl_fairseq.label.kmeans import Options, choose_lloyd, fit
from music_ssl_fairseq.label.nearest_centroid import Nearest, make_nearest
from music_ssl_fairseq.label.torch_kmeans import TorchNearest
from music_ssl_fairseq.runtime.machine import choose_device
from tests.audio_files import tone


@pytest.fixture(scope="module")
def frames() -> np.ndarray:
    return np.random.default_rng(0).permutation(Mfcc().features(tone(30.0)[:, 0]) + 50)


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch) -> None:
    monkeypatch.setattr(torch_kmeans, "_BLOCK_DISTANCES", 700 * 60)


def test_iterations_are_those_of_faiss(frames):
    for iterations, min_gain in ((1, 0.0), (3, 0.0), (30, 0.01)):
        ours, inertias = torch_kmeans.lloyd("cpu", frames, frames[:60], iterations, min_gain)
        theirs, expected = choose_lloyd("cpu", 1)[0](frames, frames[:60], iterations, min_gain)
        assert inertias == pytest.approx(expected, rel=2e-3)
        np.testing.assert_allclose(ours, theirs, atol=1e-2 if iterations == 1 else 40)


def test_fits_as_well_as_faiss(frames):
    ours, again = (
        fit(frames, Options(40), partial(torch_kmeans.lloyd, "cpu"), id) for _ in range(2)
    )
    theirs = fit(frames, Options(40), choose_lloyd("cpu", 1)[0], id)
    assert ours.curve[-1] == pytest.approx(theirs.curve[-1], rel=0.02)
    assert again.centroids.tobytes() == ours.centroids.tobytes()


def test_empty_clusters_are_filled(frames):
    start = np.concatenate([frames[:5], np.full((1, 39), 1e5, np.float32)])
    moved, _ = torch_kmeans.lloyd("cpu", frames, start, 1, 0.0)
    assert np.isfinite(moved).all()
    assert np.abs(moved).max() < 1e4
    assert len(np.unique(moved, axis=0)) == 6


def test_nearest_of_arrays_and_tensors(frames):
    centroids = frames[::40]
    expected = Nearest(centroids)(frames)
    found = TorchNearest(centroids, "cpu")
    assert (found(frames) == expected).mean() > 0.999
    np.testing.assert_array_equal(found(torch.from_numpy(frames)), found(frames))
    assert found(frames[:0]).shape == (0,)
    assert isinstance(make_nearest(centroids, "cpu"), Nearest)


def test_devices(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert choose_device("auto") == "cpu"
    with pytest.raises(InputError, match="finds no GPU"):
        choose_device("cuda")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert choose_device("auto") == choose_device("cuda") == "cuda"
    assert choose_device("cpu") == "cpu"
    assert choose_lloyd("cpu", 1)[1].startswith("faiss ")
    assert choose_lloyd("cuda", 1)[1] == f"torch {torch.__version__} (cuda)"
