"""K-means in torch, on the CPU here, against faiss and numpy."""

import numpy as np
import pytest
import torch

from music_ssl_fairseq.errors import InputError
from music_ssl_fairseq.features.mfcc import Mfcc
from music_ssl_fairseq.label import torch_kmeans
from music_ssl_fairseq.label.backends import FaissBackend, choose_backend, choose_device
from music_ssl_fairseq.label.kmeans import Options, fit
from music_ssl_fairseq.label.nearest import Nearest, make_nearest
from music_ssl_fairseq.label.torch_kmeans import TorchBackend, TorchNearest
from tests.audio_files import tone


@pytest.fixture(scope="module")
def frames() -> np.ndarray:
    return np.random.default_rng(0).permutation(Mfcc().features(tone(30.0)[:, 0]) + 50)


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch) -> None:
    monkeypatch.setattr(torch_kmeans, "_BLOCK_VALUES", 700 * 60)


def test_an_iteration_is_faiss_iteration(frames):
    start = frames[:60]
    ours, inertia = TorchBackend("cpu").iterate(frames, start)
    theirs, expected = FaissBackend(1).iterate(frames, start)
    assert inertia == pytest.approx(expected, rel=1e-4)
    np.testing.assert_allclose(ours, theirs, atol=1e-2)


def test_two_nearest_are_faiss_two_nearest(frames):
    ours, nearest = TorchBackend("cpu").two_nearest(frames, frames[:60])
    theirs, expected = FaissBackend(1).two_nearest(frames, frames[:60])
    np.testing.assert_allclose(ours, theirs, rtol=1e-3, atol=0.05)
    assert (nearest == expected).mean() > 0.999


def test_fits_as_well_as_faiss(frames):
    ours = fit(frames, Options(40), TorchBackend("cpu"), lambda _: None)
    theirs = fit(frames, Options(40), FaissBackend(1), lambda _: None)
    assert ours.curve[-1] == pytest.approx(theirs.curve[-1], rel=0.02)
    again = fit(frames, Options(40), TorchBackend("cpu"), lambda _: None)
    assert again.centroids.tobytes() == ours.centroids.tobytes()


def test_empty_clusters_are_filled(frames):
    start = np.concatenate([frames[:5], np.full((1, 39), 1e5, np.float32)])
    moved, _ = TorchBackend("cpu").iterate(frames, start)
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
    assert choose_device("auto", with_model=True) == "cpu"
    with pytest.raises(InputError, match="finds no GPU"):
        choose_device("cuda", with_model=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert choose_device("auto", with_model=True) == "cuda"
    assert choose_device("auto", with_model=False) == "cpu"
    assert choose_device("cuda", with_model=False) == "cuda"
    # No GPU build of faiss is installed, so K-means on a GPU is torch's.
    assert isinstance(choose_backend("cpu", 1), FaissBackend)
    assert isinstance(choose_backend("cuda", 1), TorchBackend)
