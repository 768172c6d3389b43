"""K-means against scikit-learn, and assignment against all distances."""

import numpy as np
import pytest
from sklearn.cluster import KMeans, kmeans_plusplus

from music_ssl_fairseq.errors import InputError
from music_ssl_fairseq.features.mfcc import Mfcc
from music_ssl_fairseq.label import kmeans
from music_ssl_fairseq.label.backends import FaissBackend
from music_ssl_fairseq.label.kmeans import Fit, Options, check_enough, fit, nearest_others
from music_ssl_fairseq.label.nearest import Nearest
from music_ssl_fairseq.label.reseat import reseat
from music_ssl_fairseq.label.start import start_centroids
from tests.audio_files import tone


@pytest.fixture(scope="module")
def frames() -> np.ndarray:
    """In random order, as a sample of many tracks is."""
    return np.random.default_rng(0).permutation(Mfcc().features(tone(60.0)[:, 0]))


def quiet(fit: Fit) -> None:
    pass


def clustered(frames, k, seed=0, threads=1, **options) -> Fit:
    return fit(frames, Options(k, seed, **options), FaissBackend(threads), quiet)


def inertia(frames, centroids) -> float:
    return np.square(frames[:, None] - centroids).sum(-1).min(1).mean()


def test_inertia_is_as_low_as_scikit_learns(frames):
    found = clustered(frames, 50)
    assert found.centroids.shape == (50, 39)
    assert found.centroids.dtype == np.float32
    references = [
        KMeans(50, n_init=1, max_iter=50, tol=0, random_state=i).fit(frames).inertia_
        for i in range(3)
    ]
    assert inertia(frames, found.centroids) <= 1.005 * np.mean(references) / len(frames)
    assert inertia(frames, found.centroids) <= found.curve[-1]


@pytest.mark.parametrize("width", [39, 300])
def test_coarse_part_and_principal_axes_lose_little(frames, width, monkeypatch):
    monkeypatch.setattr(kmeans, "_QUICK", 2000)
    rng = np.random.default_rng(0)
    # 300 values that are, but for a little noise, the 39 turned around.
    turned = frames @ np.linalg.qr(rng.standard_normal((width, 39)))[0].T if width > 39 else frames
    turned = (turned + 0.1 * rng.standard_normal(turned.shape)).astype(np.float32)
    found = clustered(turned, 25)
    references = [KMeans(25, n_init=1, random_state=i).fit(turned).inertia_ for i in range(3)]
    assert found.centroids.shape == (25, width)
    assert inertia(turned, found.centroids) <= 1.01 * np.mean(references) / len(turned)


def test_all_frames_count(frames):
    # 750 a centroid, of which faiss by itself would take 256.
    found = clustered(frames, 8, iterations=200)
    units = Nearest(found.centroids)(frames)
    means = np.stack([frames[units == unit].mean(axis=0) for unit in range(8)])
    np.testing.assert_allclose(inertia(frames, means), inertia(frames, found.centroids), rtol=5e-3)


def test_curve_falls_and_every_step_is_watched(frames):
    watched = []
    found = fit(frames, Options(20), FaissBackend(1), watched.append)
    assert [state.step for state in watched] == list(range(1, found.step + 1))
    assert watched[-1] is found
    assert (np.diff(found.curve) <= 0).all()
    assert len(found.curve) < 30


def test_iterations_at_most(frames):
    assert len(clustered(frames, 20, iterations=1).curve) == 1


@pytest.mark.parametrize("after", [0, 3, 6, 7])
def test_taken_up_after_any_step_it_ends_the_same(frames, after):
    watched = []
    whole = fit(frames, Options(30), FaissBackend(1), watched.append)
    again = fit(frames, Options(30), FaissBackend(1), quiet, begun=watched[after])
    assert again.centroids.tobytes() == whole.centroids.tobytes()
    assert again.curve == whole.curve


def test_parts_grow_and_the_run_is_taken_up_between_them(frames, monkeypatch):
    monkeypatch.setattr(kmeans, "_QUICK", 1000)
    backend = FaissBackend(1)
    lengths, watched = [], []
    iterate = backend.iterate

    def counted(part, centroids):
        lengths.append(len(part))
        return iterate(part, centroids)

    monkeypatch.setattr(backend, "iterate", counted)
    whole = fit(frames, Options(10, iterations=3), backend, watched.append)
    assert lengths == sorted(lengths)
    assert [lengths.count(n) for n in (1499, 2999, 5998)] == [4, 3, len(whole.curve)]
    assert set(lengths) == {1000, 1499, 2999, 5998}
    for state in watched[-5:-1]:
        again = fit(frames, Options(10, iterations=3), FaissBackend(1), quiet, begun=state)
        assert again.centroids.tobytes() == whole.centroids.tobytes()


def test_random_start_and_restarts(frames):
    start = start_centroids(frames, 30, 0, "random")
    assert len(np.unique(start, axis=0)) == 30
    one = clustered(frames, 30, init="random")
    best = clustered(frames, 30, init="random", restarts=4)
    assert best.coarse[3] <= one.coarse[3]
    assert inertia(frames, best.centroids) <= 1.05 * inertia(frames, one.centroids)


def test_few_clusters(frames):
    assert clustered(frames, 1).centroids[0] == pytest.approx(frames.mean(axis=0), abs=1e-3)
    assert clustered(frames, 2).centroids.shape == (2, 39)


def test_reseating_moves_what_matters_least():
    # Two centroids share one heap of frames; a third has two heaps to itself.
    heaps = np.repeat(np.array([[0.0, 0], [10, 0], [10, 6]], np.float32), 100, axis=0)
    frames = heaps + np.random.default_rng(0).normal(0, 0.1, heaps.shape).astype(np.float32)
    centroids = np.array([[-0.1, 0], [0.1, 0], [10, 3], [50, 50]], np.float32)
    distances, nearest = FaissBackend(1).two_nearest(frames, centroids)
    neighbours = nearest_others(centroids, 1)
    assert neighbours.ravel().tolist() == [1, 0, 1, 2]
    rng = np.random.default_rng(0)
    moved = reseat(centroids, distances, nearest, neighbours, 0, rng)
    changed = np.flatnonzero((moved != centroids).any(axis=1))
    assert changed.tolist() == [3]
    assert np.abs(moved[3] - [10, 3]).max() < 6


@pytest.mark.parametrize("num_frames", [40, 5998])
def test_start_is_as_good_as_scikit_learns(frames, num_frames):
    ours = [start_centroids(frames[:num_frames], 40, seed) for seed in range(3)]
    theirs = [kmeans_plusplus(frames[:num_frames], 40, random_state=i)[0] for i in range(3)]
    assert np.mean([inertia(frames[:num_frames], c) for c in ours]) <= 1.05 * np.mean(
        [inertia(frames[:num_frames], c) for c in theirs]
    )
    for centroids in ours:
        assert centroids.shape == (40, 39)
        assert len(np.unique(centroids, axis=0)) == 40


def test_same_seed_same_bytes_on_any_number_of_threads(frames):
    first = clustered(frames, 50, seed=7)
    again = clustered(frames, 50, seed=7, threads=2)
    other = clustered(frames, 50, seed=8)
    assert first.centroids.tobytes() == again.centroids.tobytes()
    assert first.centroids.tobytes() != other.centroids.tobytes()


def test_fewer_different_frames_than_clusters():
    found = clustered(np.zeros((100, 39), np.float32), 10)
    assert np.isfinite(found.centroids).all()
    assert found.curve[-1] == 0


def test_nearest_is_the_nearest(frames):
    # Far from the origin, where |x|^2 - 2 x.c + |c|^2 in float32 would lose the difference.
    far = frames + np.float32(300)
    centroids = far[::97][:61]
    distances = np.square(far[:, None].astype(np.float64) - centroids).sum(-1)
    units = Nearest(centroids)(far)
    chosen = distances[np.arange(len(far)), units]
    assert (chosen <= distances.min(1) * (1 + 1e-5)).all()
    assert (units == distances.argmin(1)).mean() > 0.999


def test_nearest_of_no_frames(frames):
    assert Nearest(frames[:5])(frames[:0]).shape == (0,)


def test_too_few_frames():
    assert check_enough(3900, 100) is None
    with pytest.raises(InputError, match="99 frames cannot make 100 clusters"):
        check_enough(99, 100)
    warning = check_enough(1000, 100)
    assert warning is not None
    assert "10.0 a centroid" in warning
    assert "--k 25" in warning
