"""`--stage fit` of the labeler: sample frames, and fit centroids to them."""

import sys
from collections.abc import Iterator
from functools import partial
from itertools import chain, islice
from pathlib import Path

import numpy as np
from tqdm import tqdm

from music_ssl_fairseq.data.audio_identity import audio_digest, audio_identity
from music_ssl_fairseq.data.manifest import Manifest
from music_ssl_fairseq.errors import AudioError, InputError, warn
from music_ssl_fairseq.jobs.blocks import BlockJob
from music_ssl_fairseq.jobs.checkpoint_dir import CheckpointDir
from music_ssl_fairseq.jobs.pool import ordered
from music_ssl_fairseq.jobs.shards import in_own_order
from music_ssl_fairseq.label import kmeans, kmeans_in_batches
from music_ssl_fairseq.label.external_centroids import centroids_file, load_centroids
from music_ssl_fairseq.label.job import Job
from music_ssl_fairseq.label.kmeans import KMeansState
from music_ssl_fairseq.label.sample import Sample, SampleFeatures
from music_ssl_fairseq.runtime import hub
from music_ssl_fairseq.runtime.files import checksum
from music_ssl_fairseq.runtime.metadata import METADATA
from music_ssl_fairseq.runtime.texts import read_object

SAMPLE = "sample"
LABELS_LOCK = "fit"  # held to fit centroids, and to join blocks


def fit_centroids(job: Job, manifest: Manifest) -> None:
    """Sample frames of the train manifest, cluster them, and save the centroids.

    Processes that share a run share the sampling; one of them clusters, and the others wait.

    Raises InputError if there are fewer frames than clusters, or a track cannot be read.
    """
    folder, recipe, front = job.folder, job.recipe, job.front
    # They differ with --minibatch: centroids of `sample` are then moved by batches of `whole`.
    sample, whole = choose_sample(job, manifest)
    warn(kmeans.check_enough(whole.total, recipe.k))
    folder.make()
    num_blocks = sample_blocks(job, sample, folder.checkpoint_dir, SampleFeatures(job.features))
    with folder.checkpoint_dir.locked(LABELS_LOCK):
        folder.reload()
        if folder.centroids() is not None:
            return
        if sample is whole:
            frames = _load_sample(job, num_blocks)
            fit, fitted_by = _fit_at_once(job, frames, manifest)
            num_frames = len(frames)
        else:
            fit, num_frames, fitted_by = _fit_in_batches(job, num_blocks, whole)
        folder.save_fit(fit, num_frames, front, fitted_by, audio_identity(manifest))


def sample_blocks(
    job: Job, sample: Sample, checkpoint_dir: CheckpointDir, work: SampleFeatures
) -> int:
    """Save the sampled frames of all blocks; return the number of blocks."""
    tracks = sample.manifest
    source = partial(audio_digest, tracks)
    sampling = BlockJob(
        SAMPLE, "sampling", tracks.num_samples, sample.part, source, job.skip_unreadable
    )
    num_blocks = len(sampling.blocks)
    sampling.run(checkpoint_dir, in_own_order(num_blocks, job.shard), work, job.pool)
    return num_blocks


def choose_sample(job: Job, manifest: Manifest) -> tuple[Sample, Sample]:
    """Return the sample that K-means holds at once, and the sample of all frames it uses."""
    recipe = job.recipe
    whole = Sample(manifest, job.front, recipe.max_frames, recipe.seed)
    held = recipe.minibatch or whole.total
    if held >= whole.total:
        return whole, whole
    return Sample(manifest, job.front, held, recipe.seed), whole


def take_centroids(job: Job, file: Path) -> None:
    """Save external centroids as if they had been fitted here.

    Raises InputError if they are not of the job's features.
    """
    centroids = load_centroids(centroids_file(file))
    k, dimension = centroids.shape
    if dimension != job.front.dimension:
        raise InputError(
            f"{file}: {k} centroids of {dimension} values, but {job.features.name} has "
            f"{job.front.dimension} per frame: they are of other features"
        )
    _refuse_others(job, file)
    job.folder.make()
    with job.folder.checkpoint_dir.locked(LABELS_LOCK):
        job.folder.reload()
        if job.folder.centroids() is None:
            # A model on the hub is recorded with its commit.
            name = hub.pinned(file, hub.snapshot(file)) if hub.is_name(file) else file.name
            job.folder.save_fit(KMeansState(centroids), 0, job.front, f"given as {name}")


def _refuse_others(job: Job, given: Path) -> None:
    """Compare the features with metadata.json beside the centroids, if there is one."""
    file = centroids_file(given)
    beside = file.with_name(METADATA)
    about = read_object(beside) if beside.exists() else {}
    if "features" not in about or about.get("centroids_sha256", checksum(file)) != checksum(file):
        return
    for name in ("features", "layer", "checkpoint"):
        own = getattr(job.recipe, name)
        if about.get(name) != own:
            stated = f"{name} {about.get(name)!s:.16}, not {own!s:.16}"
            raise InputError(
                f"{given}: {beside} says that its centroids are of {stated}; give these features, "
                "or the centroids of yours"
            )


def _load_sample(job: Job, num_blocks: int) -> np.ndarray:
    """Return `[n, D]` float32 in random order, so that any part of it is a sample as well."""
    blocks = job.folder.checkpoint_dir
    lengths = [int(blocks.load_lengths(SAMPLE, number).sum()) for number in range(num_blocks)]
    places = np.random.default_rng((job.recipe.seed, 1)).permutation(sum(lengths))
    frames = np.empty((sum(lengths), job.front.dimension), np.float32)
    ends = np.cumsum(lengths)
    for number in range(num_blocks):
        if lengths[number]:
            own = places[ends[number] - lengths[number] : ends[number]]
            frames[own] = blocks.load_block(SAMPLE, number).values
    kmeans.check_enough(len(frames), job.recipe.k)
    warn(kmeans.check_distinct(frames, job.recipe.k))
    return frames


def _state_file(job: Job, name: str, manifest: Manifest) -> Path:
    """Return the state file of an interrupted K-means. Its name contains the audio's digest."""
    return job.folder.checkpoint_dir.path / f"{name}-{audio_identity(manifest)}.npz"


def _fit_at_once(job: Job, frames: np.ndarray, manifest: Manifest) -> tuple[KMeansState, str]:
    """Return centroids of all frames, and the library that fitted them."""
    checkpoint_dir, recipe = job.folder.checkpoint_dir, job.recipe
    size = f"{len(frames)} frames of {frames.shape[1]} values"
    print(f"K-means: k = {recipe.k}, {size}", file=sys.stderr)
    if recipe.algorithm == "minibatch":
        return kmeans.fit_as_fairseq(frames, recipe)
    file = _state_file(job, "fit", manifest)
    found = checkpoint_dir.load_arrays(file)
    lloyd, by = kmeans.choose_lloyd(job.device, job.threads)

    def watch(state: KMeansState) -> None:
        checkpoint_dir.save_arrays(file, **state._asdict())

    begun = KMeansState(**found) if found else None
    return kmeans.fit(frames, recipe, lloyd, watch, begun), by


def _fit_in_batches(job: Job, num_blocks: int, whole: Sample) -> tuple[KMeansState, int, str]:
    """Return centroids of a sample moved by all of `whole`, its number of frames, the library."""
    checkpoint_dir, size = job.folder.checkpoint_dir, job.recipe.minibatch
    assert size is not None
    file = _state_file(job, "batches", whole.manifest)
    if found := checkpoint_dir.load_arrays(file):
        state = kmeans_in_batches.Progress(**found)
    else:
        frames = _load_sample(job, num_blocks)
        fit, by = _fit_at_once(job, frames, whole.manifest)
        state = kmeans_in_batches.begin(fit, frames, job.device, by)
        del frames  # the batches take their place
    batches = kmeans_in_batches.Batches(whole, size)
    sizes = batches.sizes.tolist()
    with tqdm(desc="K-means", total=sum(sizes), unit=" frames", unit_scale=True) as bar:
        bar.update(sum(sizes[: state.batches]))

        def watch(state: kmeans_in_batches.Progress) -> None:
            checkpoint_dir.save_arrays(file, **state._asdict())
            bar.set_postfix_str(f"inertia {state.curve[-1]:.4g}", refresh=False)
            bar.update(sizes[state.batches - 1])

        read = _read_batches(job, batches, state.batches)
        state = kmeans_in_batches.fit_batches(read, job.device, watch, state)
    fit = KMeansState(state.centroids, state.curve, state.coarse)
    return fit, int(state.frames), str(state.fitted_by)


def _read_batches(job: Job, batches: kmeans_in_batches.Batches, done: int) -> Iterator[np.ndarray]:
    """Yield `[n, D]` of each batch after the first `done`."""
    numbers = range(done, len(batches))
    parts = chain.from_iterable(map(batches.parts, numbers))
    groups = iter(lambda: list(islice(parts, job.pool.group_size)), [])
    results = chain.from_iterable(ordered(SampleFeatures(job.features), groups, job.pool))
    for number in numbers:
        frames = [np.empty((0, job.front.dimension), np.float32)]
        for result in islice(results, batches.num_parts(number)):
            if not isinstance(result, AudioError):
                frames.append(result)
            elif not job.skip_unreadable:
                raise result
        yield np.concatenate(frames)
