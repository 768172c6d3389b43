"""The two stages of labelling, with progress: fit centroids, then label each split with them."""

import sys
from math import ceil

import numpy as np
from tqdm import tqdm

from music_ssl_fairseq.data.manifest import Manifest
from music_ssl_fairseq.features import Features, front_end
from music_ssl_fairseq.frames import SAMPLE_RATE
from music_ssl_fairseq.label import kmeans
from music_ssl_fairseq.label.assign import Labeller, label_split
from music_ssl_fairseq.label.parallel import ordered
from music_ssl_fairseq.label.recipe import LabelFolder, fingerprint
from music_ssl_fairseq.label.sample import Reader, Sample


def fit_centroids(
    folder: LabelFolder, features: Features, manifest: Manifest, workers: int
) -> np.ndarray:
    """Sample frames, cluster them, and save the centroids before anything else can go wrong.

    Args:
        features: of the folder's recipe.
        manifest: of the train split.

    Returns:
        `[k, dimension]` float32.

    Raises:
        InputError: if there are fewer frames than clusters, or a track cannot be read.
    """
    recipe = folder.recipe
    front = front_end(features)
    num_frames = sum(front.grid.num_frames(n) for n in manifest.num_samples.tolist())
    if warning := kmeans.check_enough(min(recipe.max_frames, num_frames), recipe.k):
        print(f"warning: {warning}", file=sys.stderr)
    folder.make()
    frames = _sample(folder, features, manifest, workers)
    with tqdm(total=recipe.iterations, desc="K-means", unit="it") as bar:

        def watch(inertia: float) -> None:
            bar.set_postfix_str(f"inertia {inertia:.4g}", refresh=False)
            bar.update()

        fit = kmeans.fit(frames, recipe.k, recipe.iterations, recipe.seed, workers, watch)
    folder.save_fit(fit, len(frames), front)
    return fit.centroids


def _sample(
    folder: LabelFolder, features: Features, manifest: Manifest, workers: int
) -> np.ndarray:
    """`[n, dimension]` float32, n at most `max_frames`."""
    front = front_end(features)
    sample = Sample(manifest, front.grid, folder.recipe.max_frames, folder.recipe.seed)
    frames = sample.empty(front.dimension)
    filled = 0
    seconds = sum(part.track.num_samples for part in sample.parts()) / SAMPLE_RATE
    with _audio_bar("sampling", seconds) as bar:
        blocks = ordered(Reader(features), sample.parts(), workers)
        for part, block in zip(sample.parts(), blocks, strict=True):
            frames[filled : filled + len(block)] = block
            filled += len(block)
            bar.update(part.track.num_samples / SAMPLE_RATE)
    return frames


def label(
    folder: LabelFolder,
    features: Features,
    centroids: np.ndarray,
    split: str,
    manifest: Manifest,
    workers: int,
) -> None:
    """Label a split, from where an interrupted run has left it, and record that it is done.

    Raises:
        InputError: if a track cannot be read; what is done is kept.
    """
    labeller = Labeller(features, centroids)
    partial = folder.partial(split, fingerprint(manifest))
    ends = [0.0, *(manifest.num_samples.cumsum() / SAMPLE_RATE).tolist()]
    progress = label_split(manifest, labeller, partial, folder.target(split), workers)
    usage = next(progress)  # what an interrupted run has left
    with _audio_bar(split, ends[-1], ends[usage.tracks]) as bar:
        for _ in progress:
            bar.update(ends[usage.tracks] - bar.n)
    folder.finish(split, manifest, usage)


def _audio_bar(what: str, seconds: float, done: float = 0.0) -> tqdm:
    return tqdm(
        desc=what,
        total=ceil(seconds),
        initial=int(done),
        unit=" audio-s",
        unit_scale=True,
    )
