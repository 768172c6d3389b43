"""K-means in faiss: from a sample of frames to centroids.

Each restart starts from frames that faiss chooses (AFK-MC², an approximation of k-means++ by Markov
chains), goes through Lloyd's iterations on a part of the frames, and then on all of them. On
600,000 MFCC frames of music, k = 500, that part costs as much as three iterations on all frames and
replaces ten (`python -m tests.benchmarks.kmeans`).
"""

import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from music_ssl_fairseq.errors import InputError
from music_ssl_fairseq.runtime.user_command import with_option

FRAMES_PER_CENTROID = 39
"""Below this many frames per centroid, units are more noise than structure (faiss's bound)."""

_START_FRAMES = 150_000
_START_FRAMES_PER_CENTROID = 100  # if that is more
_START_ITERATIONS = 10
_MIN_GAIN = 6e-3  # relative gain of an iteration on all frames below which it is the last

Lloyd = Callable[[np.ndarray, np.ndarray, int, float], tuple[np.ndarray, list[float]]]
"""A function of frames `[n, D]`, centroids `[k, D]`, the number of iterations at most, and the
relative gain below which they end. It returns centroids, and the inertia before each iteration."""


@dataclass(frozen=True)
class Options:
    """Settings of a fit."""

    k: int
    seed: int = 0
    # On all frames, at most; fewer once one lowers the inertia by less than 0.6 %
    iterations: int = 30
    init: str = "kmeans++"  # `kmeans++` (AFK-MC²), or `random`, different frames
    restarts: int = 1  # complete fits; the lowest inertia wins


class KMeansState(NamedTuple):
    """The best fit so far, as arrays of one file (`jobs.checkpoint_dir`)."""

    centroids: np.ndarray  # `[k, D]` float32
    # `[iterations]` inertia per frame, that is the mean squared distance of a frame to its
    # centroid, before each iteration on all frames. The centroids are therefore a little better
    # than the last value says.
    curve: np.ndarray = np.zeros(0)
    coarse: np.ndarray = np.zeros(0)  # the same for the iterations on a part of the frames
    restarts: int = 0  # done so far


def check_enough(num_frames: int, k: int) -> str | None:
    """Check that there are enough frames for `k` clusters; return a warning if they are few.

    Raises InputError if there are fewer frames than clusters.
    """
    if num_frames < k:
        fewer = max(num_frames // FRAMES_PER_CENTROID, min(num_frames, 2))
        raise InputError(
            f"{num_frames} frames cannot make {k} clusters: "
            "give more audio, a smaller --k or a larger --max-frames",
            with_option("--k", fewer) if fewer > 1 else "",
        )
    if num_frames < FRAMES_PER_CENTROID * k:
        return (
            f"{num_frames} frames for {k} clusters are {num_frames / k:.1f} per centroid, and "
            f"below {FRAMES_PER_CENTROID} units depend more on chance than on sound: "
            f"give more audio, or --k {max(1, num_frames // FRAMES_PER_CENTROID)}"
        )
    return None


def check_distinct(frames: np.ndarray, k: int) -> str | None:
    """Check that `[n, D]` float32 frames differ enough for `k` clusters; return a warning if not.

    Raises InputError if all frames are equal, for instance silent.
    """
    number = 0
    size = 4 * k
    while number < k and size < 8 * len(frames):  # mostly, the first of them are enough
        number = len(np.unique(frames[:size], axis=0))
        size *= 8
    if number == 1:
        raise InputError(
            f"all {len(frames)} frames sampled are equal: is the music silent? Silent tracks are "
            "named by",
            "python -m manifests_tools check manifests --thorough",
        )
    if number < k:
        return (
            f"only {number} of the {len(frames)} frames sampled are distinct, for {k} clusters: "
            f"some units will never occur; give more audio, or --k {number} at most"
        )
    return None


def fit(
    frames: np.ndarray,
    options: Options,
    lloyd: Lloyd,
    watch: Callable[[KMeansState], None],
    begun: KMeansState | None = None,
) -> KMeansState:
    """Cluster frames.

    The result depends on the frames and `options`, by rounding on the number of threads, and not on
    an interruption.

    Args:
        frames: `[n, D]` float32, C-contiguous, in random order; at least `k`, see `check_enough`.
        lloyd: what iterates, see `choose_lloyd`.
        watch: called with the state after each restart.
        begun: the last state that `watch` was called with, to resume from.
    """
    best = begun
    part = frames[: max(_START_FRAMES, _START_FRAMES_PER_CENTROID * options.k)]
    for restart in range(int(begun.restarts) if begun else 0, options.restarts):
        start = _start(part, options, np.random.default_rng((options.seed, restart)))
        start, coarse = lloyd(part, start, _START_ITERATIONS, 0.0)
        centroids, curve = lloyd(frames, start, options.iterations, _MIN_GAIN)
        if best is None or curve[-1] < best.curve[-1]:
            best = KMeansState(centroids, np.array(curve), np.array(coarse))
        best = best._replace(restarts=restart + 1)
        watch(best)
    assert best is not None
    return best


def _start(frames: np.ndarray, options: Options, rng: np.random.Generator) -> np.ndarray:
    """Choose `[k, D]` of the frames to start from."""
    if options.init == "random":
        return frames[np.sort(rng.choice(len(frames), options.k, replace=False))]
    faiss = import_faiss()
    initialisation = faiss.ClusteringInitialization(frames.shape[1], options.k)
    initialisation.method = faiss.ClusteringInitMethod_AFK_MC2
    initialisation.seed = int(rng.integers(2**31))
    start = np.empty((options.k, frames.shape[1]), np.float32)
    initialisation.init_centroids(len(frames), faiss.swig_ptr(frames), faiss.swig_ptr(start))
    return start


def choose_lloyd(device: str, threads: int) -> tuple[Lloyd, str]:
    """Return the function that iterates, of faiss or torch, and that library's name and version."""
    if device != "cpu":
        import torch

        from music_ssl_fairseq.label.torch_kmeans import lloyd

        return partial(lloyd, device), f"torch {torch.__version__} ({device})"
    faiss = import_faiss()
    faiss.omp_set_num_threads(threads)
    return _faiss_lloyd, f"faiss {faiss.__version__}"


def _faiss_lloyd(
    frames: np.ndarray, centroids: np.ndarray, iterations: int, min_gain: float
) -> tuple[np.ndarray, list[float]]:
    faiss = import_faiss()
    k, dimension = centroids.shape
    parameters = faiss.ClusteringParameters()
    parameters.niter = iterations
    parameters.early_stop_threshold = min_gain
    parameters.max_points_per_centroid = len(frames)  # the default is a sample of 256 per centroid
    parameters.min_points_per_centroid = 1
    parameters.use_super_kmeans = True  # skips distances that cannot be the least
    clustering = faiss.Clustering(dimension, k, parameters)
    faiss.copy_array_to_vector(centroids.ravel(), clustering.centroids)
    clustering.train(frames, faiss.IndexFlatL2(dimension))
    stats = clustering.iteration_stats
    curve = [stats.at(i).obj / len(frames) for i in range(stats.size())]
    return faiss.vector_to_array(clustering.centroids).reshape(k, dimension), curve


def import_faiss() -> Any:
    """Import faiss such that idle threads sleep, unless OMP_WAIT_POLICY says otherwise.

    By default they spin. Where other processes want the same CPUs, that took ten times as long;
    where none do, both take the same time. The setting is read as faiss loads.
    """
    chosen = os.environ.get("OMP_WAIT_POLICY")
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    try:
        import faiss
    finally:
        if chosen is None:
            del os.environ["OMP_WAIT_POLICY"]
    return faiss


def fit_as_fairseq(frames: np.ndarray, options: Options) -> tuple[KMeansState, str]:
    """Cluster frames with scikit-learn's MiniBatchKMeans and the settings of fairseq's scripts.

    Twenty starts, batches of 10,000 frames, at most 100 passes, no reassignment: the method of
    `learn_kmeans.py`, with a seed, for reproductions. The text is the library's name and version.
    """
    import sklearn
    from sklearn.cluster import MiniBatchKMeans

    model = MiniBatchKMeans(
        n_clusters=options.k,
        init="k-means++",
        max_iter=100,
        batch_size=10_000,
        tol=0.0,
        max_no_improvement=100,
        n_init=20,
        reassignment_ratio=0.0,
        random_state=options.seed,
    ).fit(frames)
    curve = np.array([model.inertia_ / len(frames)])
    state = KMeansState(np.asarray(model.cluster_centers_, np.float32), curve)
    return state, f"scikit-learn {sklearn.__version__}"
