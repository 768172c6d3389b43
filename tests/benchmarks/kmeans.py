"""K-means of ours, of fairseq's scripts and of flash-kmeans, on the same features in one run.

    python -m tests.benchmarks.kmeans --manifests manifests                     # MFCC
    python -m tests.benchmarks.kmeans --manifests manifests --deep              # 768 values
    python -m tests.benchmarks.kmeans --synthetic 39 --synthetic 768            # no music at hand

Fitting: scikit-learn's MiniBatchKMeans with the settings of fairseq's `learn_kmeans.py`
(`kmeans.fit_as_fairseq`), `label.kmeans.fit` on the CPU and, where there is a GPU, on it, and there
flash-kmeans (PyPI), if it is installed, in place of our Lloyd iterations: as many, from the same
start. All are given the same frames in the same random order; inertia is compared on frames that
none was fitted on, of the same tracks and of tracks left out. The seconds of a GPU are those of a
second call, after kernels are compiled. Assignment: the loop of fairseq's `dump_km_label.py` (a
track at a time, numpy, all CPUs), and scikit-learn's `predict`, against `label.assign.Nearest` in
as many threads as there are CPUs. Reading and features are in none of the times.

`--deep` makes features of a random network over log-mel (80 bands, 11 frames, GELU, two layers of
768, 50 per second): as wide and as smooth as a model's layer, and made of real music. `--synthetic`
makes tracks of random walks between 300 random centres.
"""

import argparse
import importlib.util
import os
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

# Before any library reads it: idle threads sleep, as they do in the labeler. Spinning threads count
# as CPU time, and take the CPUs of other programs.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

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


def synthetic_tracks(dimension: int, enough: int) -> list[np.ndarray]:
    """Return 64 tracks `[frames, D]` that stay near one of 300 centres for 20 frames at a time."""
    rng = np.random.default_rng(0)
    centres = rng.standard_normal((300, dimension), np.float32) * 3
    tracks = []
    for _ in range(64):
        stays = -(-enough // 64 // 20)
        visited = rng.choice(rng.choice(300, 40, replace=False), stays)
        noise = rng.standard_normal((20 * stays, dimension), np.float32)
        tracks.append(np.repeat(centres[visited], 20, axis=0) + noise)
    return tracks


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


def fitted(lloyd: Any, frames: np.ndarray, k: int) -> tuple[np.ndarray, int]:
    """Return centroids of `label.kmeans.fit`, and its iterations on all frames."""
    from music_ssl_fairseq.label.kmeans import Options, fit

    state = fit(frames, Options(k), lloyd, lambda _: None)
    return state.centroids, len(state.curve)


def flash_lloyd(iterations_on_all: int, num_frames: int) -> Any:
    """Return flash-kmeans as a `kmeans.Lloyd` with a fixed number of iterations on all frames."""
    import torch
    from flash_kmeans import batch_kmeans_Euclid

    def lloyd(frames, centroids, iterations, min_gain):
        if len(frames) == num_frames:
            iterations = iterations_on_all
        placed, start = (torch.from_numpy(x).cuda()[None] for x in (frames, centroids))
        found = batch_kmeans_Euclid(placed, len(centroids), iterations, init_centroids=start)[1]
        return found[0].float().cpu().numpy(), [0.0]

    return lloyd


def ways(frames: np.ndarray, k: int, threads: int) -> dict[str, Callable[[], np.ndarray]]:
    """What fits centroids, by name; in this order, because flash-kmeans copies our iterations."""
    from music_ssl_fairseq.label.kmeans import Options, choose_lloyd, fit_as_fairseq

    iterations = 0

    def ours(device: str) -> np.ndarray:
        nonlocal iterations
        centroids, iterations = fitted(choose_lloyd(device, threads)[0], frames, k)
        return centroids

    def flash() -> np.ndarray:
        return fitted(flash_lloyd(iterations, len(frames)), frames, k)[0]

    found: dict[str, Callable[[], np.ndarray]] = {
        "scikit-learn": lambda: fit_as_fairseq(frames, Options(k))[0].centroids,
        "ours, CPU": lambda: ours("cpu"),
    }
    import torch

    if torch.cuda.is_available():
        found["ours, GPU"] = lambda: ours("cuda")
        if importlib.util.find_spec("flash_kmeans"):
            found["flash-kmeans, GPU"] = flash
    return found


def compare_fits(name: str, frames: Frames, k: int, threads: int) -> np.ndarray:
    """Print times and inertias; return our centroids."""
    fitted_on, held, other = frames
    load = f"load {os.getloadavg()[0]:.1f}"
    shape = f"{len(fitted_on):,} x {fitted_on.shape[1]}"
    print(f"\n{name}, k = {k}, fitted on {shape}, {threads} threads, {load}")
    print("                          s    CPU s  held out          other tracks")
    reference: tuple[float, float] | None = None
    centroids = np.zeros(0)
    for way, function in ways(fitted_on, k, threads).items():
        if "GPU" in way:
            function()
        found = timed(function)
        values = inertia(held, found.result), inertia(other, found.result)
        reference = reference or values
        ratios = [value / base for value, base in zip(values, reference, strict=True)]
        print(
            f"{way:20s} {found.wall:8.2f} {found.cpu:8.2f}  "
            f"{values[0]:9.2f} ({ratios[0]:.4f}) {values[1]:9.2f} ({ratios[1]:.4f})",
            flush=True,
        )
        centroids = found.result
    return centroids


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
    from threadpoolctl import threadpool_limits

    from music_ssl_fairseq.label.assign import Nearest

    nearest = Nearest(centroids)
    with threadpool_limits(1), ThreadPoolExecutor(threads) as pool:
        return np.concatenate(list(pool.map(nearest, tracks)))


def inertia(frames: np.ndarray, centroids: np.ndarray) -> float:
    """Mean squared distance to the nearest centroid, in double precision."""
    from music_ssl_fairseq.label.assign import Nearest

    units = Nearest(centroids)(frames)
    total = 0.0
    for start in range(0, len(frames), 10_000):
        part = slice(start, start + 10_000)
        distances = frames[part].astype(np.float64) - centroids[units[part]]
        total += float(np.square(distances).sum())
    return total / len(frames)


def compare_assignments(frames: np.ndarray, centroids: np.ndarray, threads: int) -> None:
    """Print the times of three ways, the best of three turns each."""
    tracks = [frames[i : i + TRACK_FRAMES] for i in range(0, len(frames), TRACK_FRAMES)]
    times: dict[str, float] = {}
    units: dict[str, np.ndarray] = {}
    assigners: dict[str, Callable[[], np.ndarray]] = {
        "ours": lambda: assign_ours(tracks, centroids, threads),
        "fairseq": lambda: assign_fairseq(tracks, centroids),
        "predict": predictor(tracks, centroids),
    }
    for _ in range(3):
        for name, way in assigners.items():
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
    add("--synthetic", type=int, action="append", metavar="D", help="random features instead")
    add("--k", type=int, nargs="+", default=[500, 2000], help="default: 500 and 2000")
    add("--frames", type=int, help="to fit on (default: 600,000, of 768 values 200,000)")
    add("--threads", type=int, default=available_cpus(), help="default: %(default)s")
    a = parser.parse_args()
    deep = a.deep or a.deep_features is not None
    for dimension in a.synthetic or [768 if deep else 39]:
        num_frames = a.frames or (600_000 if dimension < 100 else 200_000)
        if a.synthetic:
            name, tracks = "synthetic", synthetic_tracks(dimension, 2 * num_frames)
        elif a.deep_features:
            name, tracks = str(a.deep_features), np.array_split(np.load(a.deep_features), 64)
        else:
            name = "random network" if deep else "MFCC"
            tracks = track_features(a.manifests / "train.tsv", deep, 2 * num_frames)
        frames = divide(tracks, num_frames)
        for k in a.k:
            centroids = compare_fits(name, frames, k, a.threads)
            compare_assignments(frames[0][:300_000], centroids, a.threads)
    return 0


if __name__ == "__main__":
    sys.exit(main())
