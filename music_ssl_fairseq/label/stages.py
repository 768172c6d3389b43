"""The stages of labelling, with progress: sample frames and fit centroids, then assign units."""

import sys
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from music_ssl_fairseq.data.manifest import Manifest
from music_ssl_fairseq.errors import InputError
from music_ssl_fairseq.features import Features, FrontEnd, front_end
from music_ssl_fairseq.features.track import Track
from music_ssl_fairseq.jobs.blocks import BlockJob
from music_ssl_fairseq.jobs.pool import WorkerPool, ordered
from music_ssl_fairseq.jobs.shards import Shard, cut_blocks, in_own_order
from music_ssl_fairseq.label import kmeans, minibatch
from music_ssl_fairseq.label.assign import Labeller
from music_ssl_fairseq.label.backends import Backend, choose_backend
from music_ssl_fairseq.label.batches import Batches
from music_ssl_fairseq.label.given import check_dimension, load_centroids
from music_ssl_fairseq.label.join import join
from music_ssl_fairseq.label.kmeans import Fit, Options
from music_ssl_fairseq.label.notices import silent_tracks
from music_ssl_fairseq.label.recipe import LabelFolder
from music_ssl_fairseq.label.sample import Part, Reader, Sample

_SAMPLE = "sample"
_FIT = "fit"


@dataclass(frozen=True)
class Job:
    """What to do, and with what means.

    Attributes:
        folder: where labels go, with their recipe.
        features: of the recipe; their device is where models run.
        pool: who computes features.
        device: where K-means runs, `cpu` or `cuda`.
        threads: of K-means on the CPU.
        shard: which part of the assignment is this process's.
        skip_unreadable: give tracks that cannot be read no labels.
    """

    folder: LabelFolder
    features: Features
    pool: WorkerPool
    device: str
    threads: int
    shard: Shard
    skip_unreadable: bool

    @property
    def front(self) -> FrontEnd:
        """The front end, to ask about; workers have their own."""
        return front_end(replace(self.features, device="cpu"))

    @property
    def options(self) -> Options:
        recipe = self.folder.recipe
        return Options(recipe.k, recipe.seed, recipe.iterations, recipe.init, recipe.restarts)


def fit_centroids(job: Job, manifest: Manifest) -> None:
    """Sample frames, cluster them, and save the centroids.

    Processes that share a run share the sampling; one of them clusters, and the others wait.

    Args:
        manifest: of the train split.

    Raises:
        InputError: if there are fewer frames than clusters, or a track cannot be read.
    """
    folder, recipe = job.folder, job.folder.recipe
    front = job.front
    whole = Sample(manifest, front, recipe.max_frames, recipe.seed)
    if warning := kmeans.check_enough(whole.total, recipe.k):
        print(f"warning: {warning}", file=sys.stderr)
    folder.make()
    blocks = cut_blocks(manifest.num_samples)
    sample = whole
    if recipe.minibatch is not None and recipe.minibatch < whole.total:
        sample = Sample(manifest, front, recipe.minibatch, recipe.seed)
    sampling = BlockJob(
        _SAMPLE, "sampling", blocks, manifest.num_samples, sample.part, job.skip_unreadable
    )
    mine = in_own_order(len(blocks), job.shard)
    sampling.run(folder.work, mine, Reader(job.features), job.pool)
    with folder.work.locked(_FIT):
        folder.reload()
        if folder.centroids() is not None:
            return
        backend = choose_backend(job.device, job.threads)
        fit, num_frames = _fit(job, len(blocks), backend, None if sample is whole else whole)
        folder.save_fit(fit, num_frames, front, backend.name)


def take_centroids(job: Job, file: Path) -> None:
    """Save given centroids as if they had been fitted here.

    Raises:
        InputError: if they are not of the job's features.
    """
    front = job.front
    centroids = load_centroids(file)
    check_dimension(file, centroids, front.dimension, job.features.name)
    job.folder.make()
    with job.folder.work.locked(_FIT):
        job.folder.reload()
        if job.folder.centroids() is None:
            job.folder.save_fit(Fit(centroids), 0, front, f"given as {file.name}")


def choose_pool(workers: int, device: str) -> WorkerPool:
    """So many processes on the CPU, or one for each GPU."""
    if device == "cpu":
        return WorkerPool(workers)
    import torch

    devices = tuple(f"cuda:{i}" for i in range(torch.cuda.device_count()))
    return WorkerPool(len(devices), devices)


def _fit(job: Job, num_blocks: int, backend: Backend, whole: Sample | None) -> tuple[Fit, int]:
    """Centroids of the sample, taken further by `whole` if that is larger."""
    work = job.folder.work
    file = work.path / "batches.npz"
    if whole is not None and (found := work.load_arrays(file)):
        return _fit_batches(job, whole, backend, _begun_batches(found), file)
    frames = _load_sample(job.folder, num_blocks, job.front.dimension)
    kmeans.check_enough(len(frames), job.folder.recipe.k)
    if warning := kmeans.check_distinct(frames, job.folder.recipe.k):
        print(f"warning: {warning}", file=sys.stderr)
    fit = _fit_sample(job, frames, backend)
    if whole is None:
        return fit, len(frames)
    begun = minibatch.begin(fit, frames, backend)
    del frames  # the batches take their place
    return _fit_batches(job, whole, backend, begun, file)


def _fit_sample(job: Job, frames: np.ndarray, backend: Backend) -> Fit:
    folder = job.folder
    file = folder.work.path / "fit.npz"
    with tqdm(desc="K-means", unit=" steps") as bar:

        def watch(fit: Fit) -> None:
            folder.work.save_arrays(file, **_arrays(fit))
            bar.set_postfix_str(f"inertia {[*fit.coarse, *fit.curve][-1]:.4g}", refresh=False)
            bar.update(fit.step - bar.n)

        found = folder.work.load_arrays(file)
        begun = _fit_of(found) if found else None
        return kmeans.fit(frames, job.options, backend, watch, begun)


def _load_sample(folder: LabelFolder, num_blocks: int, dimension: int) -> np.ndarray:
    """`[n, dimension]` float32, in random order, so that any part of it is a sample as well."""
    work = folder.work
    lengths = [int(work.load_lengths(_SAMPLE, number).sum()) for number in range(num_blocks)]
    places = np.random.default_rng((folder.recipe.seed, 1)).permutation(sum(lengths))
    frames = np.empty((sum(lengths), dimension), np.float32)
    ends = np.cumsum(lengths)
    for number in range(num_blocks):
        if lengths[number]:
            rows = places[ends[number] - lengths[number] : ends[number]]
            frames[rows] = work.load_block(_SAMPLE, number).values
    return frames


def _fit_batches(
    job: Job, whole: Sample, backend: Backend, state: minibatch.Progress, file: Path
) -> tuple[Fit, int]:
    work, size = job.folder.work, job.folder.recipe.minibatch
    assert size is not None
    batches = Batches(whole, size)
    sizes = batches.sizes.tolist()
    done = sum(sizes[: state.batches])
    with tqdm(
        desc="K-means", total=sum(sizes), initial=done, unit=" frames", unit_scale=True
    ) as bar:

        def watch(state: minibatch.Progress) -> None:
            work.save_arrays(
                file,
                **_arrays(state.fit),
                counts=state.counts,
                batches=state.batches,
                frames=state.frames,
            )
            bar.set_postfix_str(f"inertia {state.fit.curve[-1]:.4g}", refresh=False)
            bar.update(sizes[state.batches - 1])

        read = _read_batches(job, batches, state.batches)
        state = minibatch.fit_batches(read, backend, watch, state)
    return state.fit, state.frames


def _begun_batches(found: dict[str, np.ndarray]) -> minibatch.Progress:
    return minibatch.Progress(
        _fit_of(found), found["counts"], int(found["batches"]), int(found["frames"])
    )


def _arrays(fit: Fit) -> dict[str, Any]:
    """What `_fit_of` takes up again."""
    return {
        "centroids": fit.centroids,
        "curve": fit.curve,
        "coarse": fit.coarse,
        "step": fit.step,
    }


def _fit_of(arrays: dict[str, np.ndarray]) -> Fit:
    return Fit(
        arrays["centroids"],
        arrays["curve"].tolist(),
        arrays["coarse"].tolist(),
        int(arrays["step"]),
    )


def _read_batches(job: Job, batches: Batches, done: int) -> Iterator[np.ndarray]:
    groups_of: deque[int] = deque()

    def groups() -> Iterator[list[Part]]:
        for batch in range(done, len(batches)):
            parts = list(batches.parts(batch))
            starts = range(0, len(parts), job.pool.group_size)
            groups_of.append(len(starts))
            for start in starts:
                yield parts[start : start + job.pool.group_size]

    results = ordered(Reader(job.features), groups(), job.pool)
    for _ in range(done, len(batches)):
        found = [next(results)]  # by now the batch's groups are counted
        found += [next(results) for _ in range(groups_of.popleft() - 1)]
        parts = [part for group in found for part in minibatch.readable(group, job.skip_unreadable)]
        yield np.concatenate([np.empty((0, job.front.dimension), np.float32), *parts])


def assign(job: Job, split: str, manifest: Manifest) -> bool:
    """Label this shard's part of a split; whoever finds all parts there joins them.

    Returns:
        Whether the split is finished.

    Raises:
        InputError: if a track cannot be read; what is done is kept.
    """
    folder = job.folder
    centroids = folder.centroids()
    if centroids is None:
        raise InputError(
            f"{folder.path}: no centroids of this recipe to assign; run --stage fit first"
        )
    blocks = cut_blocks(manifest.num_samples)
    name = folder.stage_name(split, manifest)

    def track(index: int) -> Track:
        return Track(manifest.path(index), int(manifest.num_samples[index]))

    stage = BlockJob(name, split, blocks, manifest.num_samples, track, job.skip_unreadable)
    mine = range(job.shard.index, len(blocks), job.shard.count)
    stage.run(folder.work, mine, Labeller(job.features, centroids), job.pool)
    with folder.work.locked(_FIT):
        folder.reload()
        if folder.is_finished(split, manifest):
            return True
        if missing := folder.work.missing(name, len(blocks)):
            print(
                f"{job.shard}: its part of {split} is done; {len(missing)} of {len(blocks)} "
                "blocks are other shards'",
                file=sys.stderr,
            )
            return False
        joined = join(folder.work, name, len(blocks), folder.target(split), len(centroids))
        folder.finish(split, manifest, joined, silent_tracks(manifest, joined.monotonous))
    return True
