"""K-means of ours and of fairseq's scripts, on the same features in one run.

    python -m tests.benchmarks.kmeans --manifests manifests              # MFCC, k = 500 and 2000
    python -m tests.benchmarks.kmeans --manifests manifests --deep       # 768 values, k = 500
    python -m tests.benchmarks.kmeans --deep-features layer6.npy         # [n, 768] of a model

Fitting: scikit-learn's MiniBatchKMeans with the settings of fairseq's `learn_kmeans.py` (k-means++,
batches of 10,000, at most 100 passes, 20 starts, patience 100, no reassignment) against
`label.kmeans.fit`. Both are given the same frames, in the same random order, and all CPUs; inertia
is compared on frames that neither was fitted on, of the same tracks and of tracks left out.
Assignment: the loop of fairseq's `dump_km_label.py` (a track at a time, numpy, all CPUs), and
scikit-learn's `predict`, against `label.nearest.Nearest` in as many threads as there are CPUs.
Reading and MFCC are in none of the times.

`--deep` makes features of a random network over log-mel (80 bands, 11 frames, GELU, two layers of
768, 50 a second): as wide and as smooth as a model's layer, and made of real music.
"""

import argparse
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np

LEFT_OUT = 8  # one track of so many is not fitted on
TRACK_FRAMES = 30_000  # frames assigned at a time: MFCC of five minutes

Frames = tuple[np.ndarray, np.ndarray, np.ndarray]


def random_network(log_mel: np.ndarray) -> np.ndarray:
    """`[T, 80]` at 100 Hz to `[T / 2, 768]`."""
    from scipy.special import erf

    rng = np.random.default_rng(0)
    padded = np.pad((log_mel - 8) / 4, ((5, 5), (0, 0)), mode="edge")
    windows = np.lib.stride_tricks.sliding_window_view(padded, 11, axis=0)[::2]
    hidden = windows.reshape(len(windows), -1)
    for width in (hidden.shape[1], 768):
        hidden = hidden @ (rng.standard_normal((width, 768)) / np.sqrt(width)).astype(np.float32)
        hidden -= hidden.mean(axis=1, keepdims=True)
        hidden /= hidden.std(axis=1, keepdims=True) + 1e-5
        hidden = hidden * 0.5 * (1 + erf(hidden / np.sqrt(2)))
    return hidden.astype(np.float32)


def track_features(manifest_file: Path, deep: bool, enough: int) -> list[np.ndarray]:
    """`[frames, D]` of each track; of deep ones its beginning, if `enough` frames come of that."""
    from music_ssl_fairseq import audio
    from music_ssl_fairseq.data.manifest import Manifest
    from music_ssl_fairseq.features import front_end

    manifest = Manifest(manifest_file)
    front = front_end("logmel" if deep else "mfcc")
    share = min(1.0, 320 * enough / int(manifest.num_samples.sum())) if deep else 1.0
    found = []
    for i in range(len(manifest)):
        length = round(share * int(manifest.num_samples[i]))
        features = front.features(audio.read(manifest.path(i), 0, length))
        found.append(random_network(features) if deep else features)
    return found


def divide(tracks: list[np.ndarray], num_frames: int) -> Frames:
    """Frames to fit on, others of the same tracks, and frames of other tracks."""
    rng = np.random.default_rng(0)
    known = np.concatenate([t for i, t in enumerate(tracks) if i % LEFT_OUT != LEFT_OUT - 1])
    other = np.concatenate([t for i, t in enumerate(tracks) if i % LEFT_OUT == LEFT_OUT - 1])
    order = rng.permutation(len(known))
    if len(known) < num_frames * 1.1:
        raise SystemExit(f"{len(known)} frames are too few for {num_frames} and some to hold out")
    held = order[num_frames : num_frames + 200_000]
    return (
        np.ascontiguousarray(known[order[:num_frames]]),
        np.ascontiguousarray(known[held]),
        other[rng.choice(len(other), min(len(other), 200_000), replace=False)],
    )


class Timed(NamedTuple):
    """Seconds that passed, and seconds of all CPUs, which other programs disturb less."""

    result: np.ndarray
    wall: float
    cpu: float


def timed(function: Callable[[], np.ndarray]) -> Timed:
    wall, cpu = time.perf_counter(), time.process_time()
    result = function()
    return Timed(result, time.perf_counter() - wall, time.process_time() - cpu)


def fit_theirs(frames: np.ndarray, k: int) -> np.ndarray:
    from sklearn.cluster import MiniBatchKMeans

    model = MiniBatchKMeans(
        n_clusters=k,
        init="k-means++",
        max_iter=100,
        batch_size=10_000,
        tol=0.0,
        max_no_improvement=100,
        init_size=None,
        n_init=20,
        reassignment_ratio=0.0,
        random_state=0,
    )
    return model.fit(frames).cluster_centers_


def fit_ours(frames: np.ndarray, k: int, threads: int) -> np.ndarray:
    from music_ssl_fairseq.label.backends import FaissBackend

    from music_ssl_fairseq.label.kmeans import Options, fit

    return fit(frames, Options(k), FaissBackend(threads), lambda _: None).centroids


def assign_fairseq(tracks: list[np.ndarray], centroids: np.ndarray) -> np.ndarray:
    """What `ApplyKmeans` does, in its terms."""
    columns = centroids.T
    norms = (columns**2).sum(0, keepdims=True)
    return np.concatenate(
        [
            np.argmin((t**2).sum(1, keepdims=True) - 2 * np.matmul(t, columns) + norms, axis=1)
            for t in tracks
        ]
    )


def assign_ours(tracks: list[np.ndarray], centroids: np.ndarray, threads: int) -> np.ndarray:
    """Threads in place of the labeler's processes, which would have to be sent the features."""
    from music_ssl_fairseq.label.nearest import Nearest
    from threadpoolctl import threadpool_limits

    nearest = Nearest(centroids)
    with threadpool_limits(1), ThreadPoolExecutor(threads) as pool:
        return np.concatenate(list(pool.map(nearest, tracks)))


def inertia(frames: np.ndarray, centroids: np.ndarray) -> float:
    """Mean squared distance to the nearest centroid, in double precision."""
    from music_ssl_fairseq.label.nearest import Nearest

    units = Nearest(centroids)(frames)
    total = 0.0
    for start in range(0, len(frames), 10_000):
        part = slice(start, start + 10_000)
        distances = frames[part].astype(np.float64) - centroids[units[part]]
        total += float(np.square(distances).sum())
    return total / len(frames)


def compare_fits(name: str, frames: Frames, k: int, threads: int) -> np.ndarray:
    """Print both times and inertias; our centroids."""
    fitted, held, other = frames
    ours, *our_times = timed(lambda: fit_ours(fitted, k, threads))
    theirs, *their_times = timed(lambda: fit_theirs(fitted, k))
    print(f"\n{name}, k = {k}, fitted on {len(fitted):,} x {fitted.shape[1]}, {threads} threads")
    print("                          ours     scikit-learn   ratio")
    row = "{:20s} {:10.2f} {:14.2f}   {:6.3f}"
    for what, mine, others in zip(("fitting, s", "CPU, s"), our_times, their_times, strict=True):
        print(row.format(what, mine, others, others / mine) + " times faster", flush=True)
    for what, part in (("fitted on", fitted), ("held out", held), ("other tracks", other)):
        if len(part):
            values = inertia(part, ours), inertia(part, theirs)
            print(row.format(f"inertia, {what}", *values, values[0] / values[1]), flush=True)
    return ours


def compare_assignments(frames: np.ndarray, centroids: np.ndarray, threads: int) -> None:
    """Print the times of three ways, the best of three turns each."""
    tracks = [frames[i : i + TRACK_FRAMES] for i in range(0, len(frames), TRACK_FRAMES)]
    times: dict[str, float] = {}
    units: dict[str, np.ndarray] = {}
    ways: dict[str, Callable[[], np.ndarray]] = {
        "ours": lambda: assign_ours(tracks, centroids, threads),
        "fairseq": lambda: assign_fairseq(tracks, centroids),
        "predict": predictor(tracks, centroids),
    }
    for _ in range(3):
        for name, way in ways.items():
            units[name], took, _ = timed(way)
            times[name] = min(took, times.get(name, np.inf))
    for name, reference in (("fairseq", "dump_km_label"), ("predict", "predict")):
        same = 100 * (units["ours"] == units[name]).mean()
        print(
            f"assigning {len(frames):,}: ours {times['ours']:.3f} s, {reference} {times[name]:.3f} "
            f"s: {times[name] / times['ours']:.2f} times faster, {same:.3f} % the same",
            flush=True,
        )


def predictor(tracks: list[np.ndarray], centroids: np.ndarray) -> Callable[[], np.ndarray]:
    """scikit-learn's `predict` with those centroids."""
    from sklearn.cluster import MiniBatchKMeans

    model = MiniBatchKMeans(len(centroids), init=centroids, n_init=1, max_iter=1).fit(centroids)
    model.cluster_centers_ = centroids
    return lambda: np.concatenate([model.predict(track) for track in tracks])


def main() -> int:
    from music_ssl_fairseq.runtime.cpus import available_cpus

    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    add = parser.add_argument
    add("--manifests", type=Path, default=Path("manifests"), help="default: %(default)s")
    add("--deep", action="store_true", help="768 values of a random network instead of MFCC")
    add("--deep-features", type=Path, help="[n, D] .npy of a model's layer instead")
    add("--k", type=int, nargs="+", help="default: 500 and 2000, of deep features 500")
    add("--frames", type=int, help="to fit on (default: 600,000, of deep features 200,000)")
    add("--threads", type=int, default=available_cpus(), help="default: %(default)s")
    arguments = parser.parse_args()
    deep = arguments.deep or arguments.deep_features is not None
    num_frames = arguments.frames or (200_000 if deep else 600_000)
    if arguments.deep_features:
        name, whole = str(arguments.deep_features), np.load(arguments.deep_features)
        tracks = np.array_split(whole, 64)
    else:
        name = "random network" if deep else "MFCC"
        tracks = track_features(arguments.manifests / "train.tsv", deep, 2 * num_frames)
    frames = divide(tracks, num_frames)
    for k in arguments.k or ([500] if deep else [500, 2000]):
        centroids = compare_fits(name, frames, k, arguments.threads)
        compare_assignments(frames[0][:300_000], centroids, arguments.threads)
    return 0


if __name__ == "__main__":
    sys.exit(main())
