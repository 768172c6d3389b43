"""K-means against scikit-learn, and assignment against all distances."""

import numpy as np
import pytest
from sklearn.cluster import KMeans, kmeans_plusplus

from music_ssl_fairseq.errors import InputError
from music_ssl_fairseq.features.mfcc import Mfcc
from music_ssl_fairseq.label.kmeans import Nearest, check_enough, fit
from music_ssl_fairseq.label.start import start_centroids
from tests.audio_files import tone


@pytest.fixture(scope="module")
def frames() -> np.ndarray:
    return Mfcc().features(tone(60.0)[:, 0])


def quiet(inertia: float) -> None:
    pass


def test_inertia_is_as_low_as_scikit_learns(frames):
    found = fit(frames, 50, 50, seed=0, threads=1, watch=quiet)
    reference = KMeans(50, n_init=1, max_iter=50, tol=0, random_state=0).fit(frames)
    assert found.centroids.shape == (50, 39)
    assert found.centroids.dtype == np.float32
    distances = np.square(frames[:, None] - found.centroids).sum(-1).min(1)
    assert found.curve[-1] == pytest.approx(distances.mean(), rel=1e-4)
    assert found.curve[-1] <= 1.01 * reference.inertia_ / len(frames)


def test_centroids_are_means_of_all_frames(frames):
    # 1500 a centroid, of which faiss by itself would take 256.
    found = fit(frames, 4, 200, seed=0, threads=1, watch=quiet)
    units = Nearest(found.centroids)(frames)
    means = np.stack([frames[units == unit].mean(axis=0) for unit in range(4)])
    np.testing.assert_allclose(found.centroids, means, atol=1e-2)


def test_curve_falls_and_is_watched(frames):
    watched = []
    found = fit(frames, 20, 8, seed=0, threads=1, watch=watched.append)
    assert watched == found.curve[:-1]
    assert (np.diff(found.curve) <= 0).all()


def test_stops_when_centroids_rest():
    frames = np.repeat(np.eye(4, dtype=np.float32), 10, axis=0)
    found = fit(frames, 4, 50, seed=0, threads=1, watch=quiet)
    assert len(found.curve) < 10
    assert found.curve[-1] == 0


def test_steps_equal_one_call_of_faiss(frames):
    import faiss

    reference = faiss.Kmeans(39, 30, niter=6, max_points_per_centroid=len(frames))
    reference.train(frames, init_centroids=start_centroids(frames, 30, seed=5))
    found = fit(frames, 30, 6, seed=5, threads=1, watch=quiet)
    np.testing.assert_array_equal(found.centroids, reference.centroids)


@pytest.mark.parametrize("num_frames", [40, 5998])
def test_start_is_as_good_as_scikit_learns(frames, num_frames):
    def inertia(centroids):
        return np.square(frames[:num_frames, None] - centroids).sum(-1).min(1).mean()

    ours = [start_centroids(frames[:num_frames], 40, seed) for seed in range(3)]
    theirs = [kmeans_plusplus(frames[:num_frames], 40, random_state=i)[0] for i in range(3)]
    assert np.mean([inertia(c) for c in ours]) <= 1.05 * np.mean([inertia(c) for c in theirs])
    for centroids in ours:
        assert centroids.shape == (40, 39)
        assert len(np.unique(centroids, axis=0)) == 40


def test_same_seed_same_bytes_on_any_number_of_threads(frames):
    first = fit(frames, 50, 5, seed=7, threads=1, watch=quiet)
    again = fit(frames, 50, 5, seed=7, threads=2, watch=quiet)
    other = fit(frames, 50, 5, seed=8, threads=1, watch=quiet)
    assert first.centroids.tobytes() == again.centroids.tobytes()
    assert first.centroids.tobytes() != other.centroids.tobytes()


def test_fewer_different_frames_than_clusters():
    found = fit(np.zeros((100, 39), np.float32), 10, 5, seed=0, threads=1, watch=quiet)
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
