"""K-means against scikit-learn, and assignment against all distances."""

import numpy as np
import pytest
from sklearn.cluster import KMeans

from music_ssl_fairseq.errors import InputError
from music_ssl_fairseq.features.mfcc import Mfcc
from music_ssl_fairseq.label import kmeans
from music_ssl_fairseq.label.kmeans import (
    KMeansState,
    Options,
    check_enough,
    choose_lloyd,
    fit,
    fit_as_fairseq,
)
from music_ssl_fairseq.label.nearest_centroid import Nearest
from tests.audio_files import tone


@pytest.fixture(scope="module")
def frames() -> np.ndarray:
    """In random order, as a sample of many tracks is."""
    return np.random.default_rng(0).permutation(Mfcc().features(tone(60.0)[:, 0]))


def quiet(fit: KMeansState) -> None:
    pass


def clustered(frames, k, seed=0, threads=1, **options) -> KMeansState:
    return fit(frames, Options(k, seed, **options), choose_lloyd("cpu", threads)[0], quiet)


def inertia(frames, centroids) -> float:
    return np.square(frames[:, None] - centroids).sum(-1).min(1).mean()


@pytest.mark.parametrize("start_frames", [2000, 150_000])
def test_inertia_is_as_low_as_scikit_learns(frames, start_frames, monkeypatch):
    """To some percent: single notes are far clearer clusters than music, and starts differ."""
    monkeypatch.setattr(kmeans, "_START_FRAMES", start_frames)
    found = clustered(frames, 50, restarts=3)
    assert found.centroids.shape == (50, 39)
    assert found.centroids.dtype == np.float32
    references = [
        KMeans(50, n_init=1, max_iter=50, tol=0, random_state=i).fit(frames).inertia_
        for i in range(3)
    ]
    assert inertia(frames, found.centroids) <= 1.06 * np.mean(references) / len(frames)
    assert inertia(frames, found.centroids) <= found.curve[-1]
    assert len(found.coarse) == 10


def test_fairseqs_settings(frames):
    found, by = fit_as_fairseq(frames, Options(50, seed=3))
    again, _ = fit_as_fairseq(frames, Options(50, seed=3))
    assert by.startswith("scikit-learn ")
    assert found.centroids.dtype == np.float32
    assert found.centroids.tobytes() == again.centroids.tobytes()
    assert inertia(frames, found.centroids) == pytest.approx(found.curve[-1], rel=1e-3)
    ours = inertia(frames, clustered(frames, 50).centroids)
    assert inertia(frames, found.centroids) == pytest.approx(ours, rel=0.1)


def test_all_frames_count(frames):
    # 750 per centroid, of which faiss by itself would take 256.
    found = clustered(frames, 8, iterations=200)
    units = Nearest(found.centroids)(frames)
    means = np.stack([frames[units == unit].mean(axis=0) for unit in range(8)])
    np.testing.assert_allclose(inertia(frames, means), inertia(frames, found.centroids), rtol=5e-3)


def test_the_curve_falls_and_ends_where_little_is_gained(frames):
    found = clustered(frames, 20)
    gains = -np.diff(found.curve) / found.curve[:-1]
    assert (gains >= 0).all()
    assert (gains[:-1] >= kmeans._MIN_GAIN).all()
    assert 1 < len(found.curve) < 30
    assert len(clustered(frames, 20, iterations=1).curve) == 1


@pytest.mark.parametrize("done", [1, 2, 3])
def test_resumed_between_restarts_it_ends_the_same(frames, done):
    watched = []
    options = Options(30, restarts=3)
    lloyd, _ = choose_lloyd("cpu", 1)
    whole = fit(frames, options, lloyd, watched.append)
    assert [state.restarts for state in watched] == [1, 2, 3]
    again = fit(frames, options, lloyd, quiet, begun=watched[done - 1])
    assert again.centroids.tobytes() == whole.centroids.tobytes()
    assert again.curve.tolist() == whole.curve.tolist()
    assert whole.curve[-1] == min(state.curve[-1] for state in watched)


def test_random_start_and_restarts(frames):
    one = clustered(frames, 30, init="random")
    best = clustered(frames, 30, init="random", restarts=4)
    assert len(np.unique(one.centroids, axis=0)) == 30
    assert best.curve[-1] <= one.curve[-1]


def test_few_clusters(frames):
    assert clustered(frames, 1).centroids[0] == pytest.approx(frames.mean(axis=0), abs=1e-3)
    assert clustered(frames, 2).centroids.shape == (2, 39)


def test_same_seed_same_bytes(frames):
    first = clustered(frames, 50, seed=7, threads=2)
    again = clustered(frames, 50, seed=7, threads=2)
    other = clustered(frames, 50, seed=8)
    assert first.centroids.tobytes() == again.centroids.tobytes()
    one = clustered(frames, 50, seed=7, threads=1)  # equal but for rounding
    assert one.curve == pytest.approx(first.curve, rel=1e-4)
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
    assert "10.0 per centroid" in warning
    assert "--k 25" in warning
