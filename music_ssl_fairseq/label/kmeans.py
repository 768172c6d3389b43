"""K-means: from a sample of frames to centroids, in steps that can be taken up.

From coarse to fine. On a part of the frames come iterations, and between them rounds of `reseat`,
which look for a better optimum; then come larger parts, and all frames settle the centroids. On
600,000 MFCC frames of music, k = 500, that takes a fifth of the time of 30 iterations over all
frames, and ends 0.7 % higher in inertia on other frames. Many values a frame (deep features) are
rotated to their principal axes, and the rounds look at the largest of these.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np

from music_ssl_fairseq.errors import InputError
from music_ssl_fairseq.label.backends import Backend
from music_ssl_fairseq.label.reseat import reseat
from music_ssl_fairseq.label.start import start_centroids

FRAMES_PER_CENTROID = 39
"""Below this many frames a centroid, the units are more noise than structure (faiss's bound)."""

_COARSE = 12  # one frame of so many is in the coarse part
_QUICK = 50_000  # at least so many are: fewer would save little time
_FIRST_ITERATIONS = 4  # before the first round of reseating
_RESTED = 6e-3  # relative gain of an iteration over all frames below which it was the last
_MANY_VALUES = 256  # a frame; with more, the coarse part is done in _AXES
_AXES = 96
_NEIGHBOURS = 3


class _Growth(NamedTuple):
    """One frame in `part`, and iterations over these."""

    part: int
    iterations: int


_GROWTHS = (_Growth(4, 4), _Growth(2, 3))


class _Effort(NamedTuple):
    """Rounds of reseating, and iterations in each."""

    rounds: int
    iterations: int


_CHEAP = 2e7  # distances an iteration up to which more of them are not felt
_MUCH = _Effort(8, 4)
_ENOUGH = _Effort(4, 2)


@dataclass(frozen=True)
class Options:
    """How to fit.

    Attributes:
        iterations: over all frames, at most; fewer when one gains less than 0.6 %.
        init: `kmeans++`, greedy, or `random`, different frames.
        restarts: starts of which the one with the lowest inertia after four iterations goes on.
    """

    k: int
    seed: int = 0
    iterations: int = 30
    init: str = "kmeans++"
    restarts: int = 1


@dataclass(frozen=True)
class Fit:
    """Centroids, and how they came about.

    Attributes:
        centroids: `[k, D]` float32.
        curve: the inertia over the number of frames, that is the mean squared distance of a frame
            to its centroid, before each iteration over all frames. The last one's centroids are
            therefore a little better than its last value.
        coarse: the same for iterations over a part of the frames (and, at first, of the values).
        step: steps taken.
    """

    centroids: np.ndarray
    curve: list[float] = field(default_factory=list)
    coarse: list[float] = field(default_factory=list)
    step: int = 0


def check_enough(num_frames: int, k: int) -> str | None:
    """Whether so many frames make `k` clusters: a warning if hardly.

    Raises:
        InputError: if there are fewer frames than clusters.
    """
    if num_frames < k:
        raise InputError(
            f"{num_frames} frames cannot make {k} clusters: "
            "give more audio, a smaller --k or a larger --max-frames"
        )
    if num_frames < FRAMES_PER_CENTROID * k:
        return (
            f"{num_frames} frames for {k} clusters are {num_frames / k:.1f} a centroid, and below "
            f"{FRAMES_PER_CENTROID} units follow chance more than sound: give more audio, "
            f"or --k {max(1, num_frames // FRAMES_PER_CENTROID)}"
        )
    return None


def check_distinct(frames: np.ndarray, k: int) -> str | None:
    """Whether `[n, D]` float32 frames differ enough for `k` clusters: a warning if not.

    Raises:
        InputError: if all frames are equal, as they are of silence.
    """
    # A sum with odd weights tells rows apart, and costs a part of sorting them.
    weights = np.random.default_rng(0).integers(1, 2**62, frames.shape[1], np.uint64) * 2 + 1
    number, size = 0, 4 * k
    while number < k and size < 8 * len(frames):
        rows = np.ascontiguousarray(frames[:size]).view(np.uint32).astype(np.uint64)
        number = len(np.unique((rows * weights).sum(axis=1, dtype=np.uint64)))
        size *= 8
    if number == 1:
        raise InputError(
            f"all {len(frames)} frames sampled are equal: is the music silent? "
            "`python -m manifests_tools check MANIFESTS --thorough` names silent tracks"
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
    backend: Backend,
    watch: Callable[[Fit], None],
    begun: Fit | None = None,
) -> Fit:
    """Cluster frames.

    The result depends on the frames and `options`, not on threads or on where a run was taken up.

    Args:
        frames: `[n, D]` float32, C-contiguous, in random order; at least `k`, see `check_enough`.
        watch: called with what there is after each step.
        begun: what `watch` was called with last, to go on from there.
    """
    coarse = _Coarse(frames, options, backend)
    state = begun if begun is not None and begun.step else coarse.start()
    if state is not begun:
        watch(state)
    while state.step < coarse.steps:
        state = coarse.step(state)
        watch(state)
    while not _settled(state, options):
        centroids, inertia = backend.iterate(coarse.placed, state.centroids)
        curve = [*state.curve, inertia]
        state = replace(state, centroids=centroids, curve=curve, step=state.step + 1)
        watch(state)
    return state


def _settled(state: Fit, options: Options) -> bool:
    curve = state.curve
    if len(curve) >= options.iterations:
        return True
    return len(curve) > 1 and curve[-2] - curve[-1] <= _RESTED * curve[-2]


class _Coarse:
    """The steps on a part of the frames: a start, rounds, back to all values, then larger parts.

    Attributes:
        placed: all frames, where the backend wants them.
        steps: how many there are.
    """

    def __init__(self, frames: np.ndarray, options: Options, backend: Backend):
        size = max(len(frames) // _COARSE, FRAMES_PER_CENTROID * options.k, _QUICK)
        # Nearly all of them are all: a second set would only be fitted to twice.
        self._frames = frames[:size] if 2 * size < len(frames) else frames
        self.placed = backend.placed(frames)
        self._growths = [g for g in _GROWTHS if len(frames) // g.part > len(self._frames)]
        self._options = options
        self._backend = backend
        effort = _MUCH if len(self._frames) * options.k <= _CHEAP else _ENOUGH
        self._rounds = effort.rounds if options.k >= 2 * _NEIGHBOURS else 0
        self._round_iterations = effort.iterations
        self._reduced = principal_values(self._frames)
        if self._reduced is self._frames:
            self._placed = self.placed[: len(self._frames)]
        else:
            self._placed = backend.placed(self._reduced)
        self.steps = 2 + self._rounds + len(self._growths)

    def start(self) -> Fit:
        """The best of the starts, after the first iterations."""
        seeds = [(self._options.seed, restart) for restart in range(self._options.restarts)]
        return min(map(self._start, seeds), key=lambda found: found.coarse[-1])

    def _start(self, seed: tuple[int, int]) -> Fit:
        centroids = start_centroids(self._reduced, self._options.k, seed, self._options.init)
        return self._iterate(Fit(centroids), self._placed, _FIRST_ITERATIONS)

    def step(self, state: Fit) -> Fit:
        if state.step <= self._rounds:
            moved = replace(state, centroids=self._reseated(state))
            found = self._iterate(moved, self._placed, self._round_iterations)
            better = found.coarse[-1] <= state.coarse[-1]
            return found if better else replace(state, step=found.step)
        if state.step == self._rounds + 1:
            return replace(state, centroids=self._of_all_values(state), step=state.step + 1)
        growth = self._growths[state.step - self._rounds - 2]
        grown = self.placed[: len(self.placed) // growth.part]
        return self._iterate(state, grown, growth.iterations)

    def _iterate(self, state: Fit, frames: Any, iterations: int) -> Fit:
        centroids, curve = state.centroids, list(state.coarse)
        for _ in range(iterations):
            centroids, inertia = self._backend.iterate(frames, centroids)
            curve.append(inertia)
        return replace(state, centroids=centroids, coarse=curve, step=state.step + 1)

    def _reseated(self, state: Fit) -> np.ndarray:
        distances, nearest = self._backend.two_nearest(self._placed, state.centroids)
        neighbours = nearest_others(state.centroids, _NEIGHBOURS)
        rng = np.random.default_rng((self._options.seed, state.step))
        return reseat(state.centroids, distances, nearest, neighbours, state.step - 1, rng)

    def _of_all_values(self, state: Fit) -> np.ndarray:
        """Centroids in the reduced values become means of the frames nearest to them."""
        if self._reduced is self._frames:
            return state.centroids
        _, nearest = self._backend.two_nearest(self._placed, state.centroids)
        sums, counts = sums_of_units(self._frames, nearest, self._options.k)
        # A cluster without a frame, if there is any, starts from where all frames are.
        sums[counts == 0] = self._frames.mean(axis=0)
        return (sums / np.maximum(1, counts)[:, None]).astype(np.float32)


def sums_of_units(frames: np.ndarray, units: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Sums `[k, D]` float64 and counts `[k]` of each unit's frames."""
    order = np.argsort(units, kind="stable")
    used, firsts = np.unique(units[order], return_index=True)
    sums = np.zeros((k, frames.shape[1]))
    for unit, first, last in zip(used, firsts, [*firsts[1:], len(order)], strict=True):
        sums[unit] = frames[order[first:last]].sum(axis=0, dtype=np.float64)
    return sums, np.bincount(units, minlength=k)


def principal_values(frames: np.ndarray) -> np.ndarray:
    """`[n, D]` to `[n, _AXES]` along the axes of largest variance, if there are many values."""
    dimension = frames.shape[1]
    if dimension <= _MANY_VALUES:
        return frames
    centred = frames - frames.mean(axis=0, dtype=np.float64).astype(np.float32)
    some = centred[: 20 * dimension]
    _, axes = np.linalg.eigh((some.T @ some).astype(np.float64))
    return np.ascontiguousarray(centred @ axes[:, -_AXES:].astype(np.float32))


def nearest_others(centroids: np.ndarray, number: int) -> np.ndarray:
    """For each centroid, the `number` others nearest to it: `[k, number]`."""
    norms = np.square(centroids).sum(axis=1)
    distances = norms[:, None] + norms - 2 * centroids @ centroids.T
    np.fill_diagonal(distances, np.inf)
    return np.argpartition(distances, number, axis=1)[:, :number]
