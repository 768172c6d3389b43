"""K-means of ours, of fairseq's scripts, of faiss and of flash-kmeans, on the same features.

    python -m tests.benchmarks.kmeans --manifests manifests                     # MFCC
    python -m tests.benchmarks.kmeans --manifests manifests --deep              # 768 values
    python -m tests.benchmarks.kmeans --synthetic 39 --synthetic 768            # no music at hand
    python -m tests.benchmarks.kmeans --synthetic 768 --ways ours-gpu flash     # a GPU alone

Fitting (`--ways`):

- `sklearn`: MiniBatchKMeans with the settings of fairseq's `learn_kmeans.py`;
- `faiss`: `faiss.Clustering` from AFK-MC², 20 iterations on all frames;
- `ours`: `label.kmeans.fit` on the CPU;
- `ours-gpu`: the same on a GPU;
- `flash`: the same, with flash-kmeans (`pip install flash-kmeans`) for the iterations, as many as
  `ours-gpu` did. Its products are in TF32, ours in float32.

Ways that need a GPU are left out where there is none. All get the same frames in the same random
order, and `--seeds` repeats all with other seeds. Inertia is compared on frames that none was
fitted on, of the same tracks and of tracks left out: the ratio to the first way's with the same
seed, then the mean ratio of all seeds with a 95 % interval, over seeds and left-out tracks. The
seconds of a GPU are those of a second call, after kernels are compiled. "Start" is the choice of
frames to start from, on the CPU, within the seconds.

Assignment (`assign`): the loop of fairseq's `dump_km_label.py` (a track at a time, numpy, all
CPUs), and scikit-learn's `predict`, against `nearest_centroid.Nearest` in as many threads as there
are CPUs. Reading and features are in none of the times.

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

TRACK_FRAMES = 30_000  # frames assigned at a time: MFCC of five minutes
WAYS = ("sklearn", "faiss", "ours", "ours-gpu", "flash", "assign")


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


class Frames(NamedTuple):
    """Frames `[n, D]` float32.

    Attributes:
        held: other frames of the same tracks.
        other: frames of other tracks.
        other_tracks: `[n]` which tracks these are of.
    """

    fitted_on: np.ndarray
    held: np.ndarray
    other: np.ndarray
    other_tracks: np.ndarray


def divide(tracks: list[np.ndarray], num_frames: int, left_out: int) -> Frames:
    """Divide frames of tracks, of which one in `left_out` is not fitted on."""
    rng = np.random.default_rng(0)
    known = np.concatenate([t for i, t in enumerate(tracks) if i % left_out != left_out - 1])
    others = [t for i, t in enumerate(tracks) if i % left_out == left_out - 1]
    other, numbers = np.concatenate(others), np.repeat(np.arange(len(others)), [*map(len, others)])
    order = rng.permutation(len(known))
    if len(known) < num_frames * 1.1:
        raise SystemExit(f"{len(known)} frames are too few for {num_frames} and some to hold out")
    chosen = np.sort(rng.choice(len(other), min(len(other), 200_000), replace=False))
    return Frames(
        np.ascontiguousarray(known[order[:num_frames]]),
        np.ascontiguousarray(known[order[num_frames : num_frames + 200_000]]),
        other[chosen],
        numbers[chosen],
    )


class Fit(NamedTuple):
    """Centroids `[k, D]`, and the seconds of the start, of all, and of all CPUs together.

    The last are disturbed less by other programs.
    """

    centroids: np.ndarray
    start: float
    wall: float
    cpu: float


class Timed:
    """Seconds since it was made."""

    def __init__(self) -> None:
        self._wall, self._cpu = time.perf_counter(), time.process_time()

    def seconds(self) -> tuple[float, float]:
        """Return seconds that passed, and seconds of all CPUs."""
        return time.perf_counter() - self._wall, time.process_time() - self._cpu


class Fitting:
    """The ways to fit `[n, D]` frames.

    Attributes:
        iterations: on all frames, of the last fit of ours.
    """

    def __init__(self, frames: np.ndarray, k: int, threads: int):
        self._frames, self._k, self._threads = frames, k, threads
        self.iterations = 1

    def fit(self, way: str, seed: int) -> Fit:
        clock = Timed()
        centroids, start = getattr(self, "_" + way.replace("-", "_"))(seed)
        return Fit(centroids, start, *clock.seconds())

    def _sklearn(self, seed: int) -> tuple[np.ndarray, float]:
        from music_ssl_fairseq.label.kmeans import Options, fit_as_fairseq

        return fit_as_fairseq(self._frames, Options(self._k, seed))[0].centroids, 0.0

    def _faiss(self, seed: int) -> tuple[np.ndarray, float]:
        from music_ssl_fairseq.label.kmeans import import_faiss

        faiss = import_faiss()
        faiss.omp_set_num_threads(self._threads)
        parameters = faiss.ClusteringParameters()
        parameters.niter, parameters.seed = 20, seed + 1
        parameters.init_method = faiss.ClusteringInitMethod_AFK_MC2
        parameters.max_points_per_centroid = len(self._frames)
        clustering = faiss.Clustering(self._frames.shape[1], self._k, parameters)
        clustering.train(self._frames, faiss.IndexFlatL2(self._frames.shape[1]))
        return faiss.vector_to_array(clustering.centroids).reshape(self._k, -1), 0.0

    def _ours(self, seed: int, device: str = "cpu") -> tuple[np.ndarray, float]:
        from music_ssl_fairseq.label.kmeans import choose_lloyd

        return self._with(choose_lloyd(device, self._threads)[0], seed)

    def _ours_gpu(self, seed: int) -> tuple[np.ndarray, float]:
        return self._ours(seed, "cuda")

    def _flash(self, seed: int) -> tuple[np.ndarray, float]:
        import torch
        from flash_kmeans.kmeans_triton_impl import batch_kmeans_Euclid

        iterations_on_all = self.iterations

        def lloyd(frames, centroids, iterations, min_gain):
            if min_gain:  # 0 for the iterations on a part
                iterations = iterations_on_all
            placed, start = (torch.from_numpy(x).cuda()[None] for x in (frames, centroids))
            found = batch_kmeans_Euclid(placed, len(centroids), iterations, init_centroids=start)
            return found[1][0].float().cpu().numpy(), [0.0]

        found = self._with(lloyd, seed)
        self.iterations = iterations_on_all
        return found

    def _with(self, lloyd: Any, seed: int) -> tuple[np.ndarray, float]:
        """Return centroids of `label.kmeans.fit`, and the seconds before its first iteration."""
        from music_ssl_fairseq.label.kmeans import Options, fit

        starts: list[float] = []
        clock = Timed()

        def watched(*arguments):
            starts.append(clock.seconds()[0])
            return lloyd(*arguments)

        state = fit(self._frames, Options(self._k, seed), watched, lambda _: None)
        self.iterations = len(state.curve)
        return state.centroids, starts[0]


def available(ways: list[str]) -> list[str]:
    """Leave out, with a line, what cannot run here."""
    import torch

    missing = {}
    if not torch.cuda.is_available():
        missing = dict.fromkeys(("ours-gpu", "flash"), "no GPU")
    elif not importlib.util.find_spec("flash_kmeans"):
        missing = {"flash": "pip install flash-kmeans"}
    for way in set(ways) & set(missing):
        print(f"without {way}: {missing[way]}")
    return [way for way in ways if way not in missing]


def compare_fits(frames: Frames, k: int, threads: int, ways: list[str], seeds: int) -> np.ndarray:
    """Print times and inertias; return the last centroids."""
    fitting = Fitting(frames.fitted_on, k, threads)
    print("              s  start   CPU s   held out           other tracks       iterations")
    sums: dict[str, list[np.ndarray]] = {way: [] for way in ways}
    centroids = np.zeros(0)
    for seed in range(seeds):
        base: tuple[float, float] | None = None
        for way in ways:
            try:
                if way in ("ours-gpu", "flash"):
                    fitting.fit(way, seed)
                found = fitting.fit(way, seed)
            except Exception as error:  # a way that fails must not cost the others
                print(f"{way:10s} failed: {type(error).__name__}: {str(error)[:300]}", flush=True)
                continue
            other = track_inertia(frames, found.centroids)
            sums[way].append(other)
            values = inertia(frames.held, found.centroids).mean(), other.sum() / len(frames.other)
            base = base or values
            ratios = [value / first for value, first in zip(values, base, strict=True)]
            count = fitting.iterations if way in ("ours", "ours-gpu", "flash") else ""
            print(
                f"{way:10s} {found.wall:7.2f} {found.start:6.2f} {found.cpu:7.2f} "
                f"{values[0]:9.2f} ({ratios[0]:.4f}) {values[1]:9.2f} ({ratios[1]:.4f})  {count}",
                flush=True,
            )
            centroids = found.centroids
    done = [way for way in ways if len(sums[way]) == seeds]
    for way in done[1:] if seeds > 1 else ():
        ratio, low, high = interval(np.array(sums[way]), np.array(sums[done[0]]))
        print(f"{way} / {done[0]}, other tracks: {ratio:.4f} ({low:.4f} to {high:.4f})", flush=True)
    return centroids


def track_inertia(frames: Frames, centroids: np.ndarray) -> np.ndarray:
    """Return `[tracks]` sums of squared distances, of the tracks left out."""
    return np.bincount(frames.other_tracks, inertia(frames.other, centroids))


def interval(sums: np.ndarray, base: np.ndarray) -> tuple[float, float, float]:
    """Return the ratio of two `[seeds, tracks]` inertias, and the bounds of its 95 % interval.

    The bounds are of 2,000 draws of as many seeds and tracks, with replacement.
    """
    rng = np.random.default_rng(0)
    seeds, tracks = sums.shape
    ratios = []
    for _ in range(2000):
        chosen = rng.integers(tracks, size=tracks)
        ours, theirs = (
            each[rng.integers(seeds, size=seeds)][:, chosen].sum() for each in (sums, base)
        )
        ratios.append(ours / theirs)
    low, high = np.quantile(ratios, [0.025, 0.975])
    return float(sums.sum() / base.sum()), float(low), float(high)


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

    from music_ssl_fairseq.label.nearest_centroid import Nearest

    nearest = Nearest(centroids)
    with threadpool_limits(1), ThreadPoolExecutor(threads) as pool:
        return np.concatenate(list(pool.map(nearest, tracks)))


def inertia(frames: np.ndarray, centroids: np.ndarray) -> np.ndarray:
    """`[n]` squared distances to the nearest centroid, in double precision."""
    from music_ssl_fairseq.label.nearest_centroid import Nearest

    units = Nearest(centroids)(frames)
    distances = np.empty(len(frames))
    for start in range(0, len(frames), 10_000):
        part = slice(start, start + 10_000)
        own = frames[part].astype(np.float64) - centroids[units[part]]
        distances[part] = np.square(own).sum(axis=1)
    return distances


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
            clock = Timed()
            units[name] = way()
            times[name] = min(clock.seconds()[0], times.get(name, np.inf))
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
    from music_ssl_fairseq.runtime.machine import available_cpus

    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--manifests", type=Path, default=Path("manifests"), help="default: %(default)s")
    add("--deep", action="store_true", help="768 values of a random network instead of MFCC")
    add("--deep-features", type=Path, help="[n, D] .npy of a model's layer instead")
    add("--synthetic", type=int, action="append", metavar="D", help="random features instead")
    add("--k", type=int, nargs="+", default=[500, 2000], help="default: 500 and 2000")
    add("--frames", type=int, help="to fit on (default: 600,000, of 768 values 200,000)")
    add("--threads", type=int, default=available_cpus(), help="default: %(default)s")
    add("--ways", nargs="+", choices=WAYS, default=WAYS, help="default: all")
    add("--seeds", type=int, default=1, help="fits of each way (default: %(default)s)")
    add("--left-out", type=int, default=8, help="one track in so many (default: %(default)s)")
    a = parser.parse_args()
    ways = available([way for way in WAYS if way in a.ways])
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
        frames = divide(tracks, num_frames, a.left_out)
        shape = f"{num_frames:,} x {frames.held.shape[1]} of {len(tracks)} tracks"
        for k in a.k:
            load = f"{a.threads} threads, load {os.getloadavg()[0]:.1f}"
            print(f"\n{name}, k = {k}, fitted on {shape}, {load}", flush=True)
            centroids = compare_fits(
                frames, k, a.threads, [way for way in ways if way != "assign"], a.seeds
            )
            if "assign" in ways:
                compare_assignments(frames.fitted_on[:300_000], centroids, a.threads)
    return 0


if __name__ == "__main__":
    sys.exit(main())
