"""Sample and label with several features in one pass over the audio.

Each set of labels has a job and a folder of its own, as if it were made alone. The pass computes
all features of a track side by side and saves each set's part where its job looks for it; the jobs
then find their blocks done.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np

from music_ssl_fairseq.data.manifest import Manifest
from music_ssl_fairseq.features import DEEP, FeatureSpec
from music_ssl_fairseq.jobs.checkpoint_dir import Block, CheckpointDir
from music_ssl_fairseq.label.assign_stage import assign_blocks
from music_ssl_fairseq.label.fit_stage import SAMPLE, choose_sample, sample_blocks
from music_ssl_fairseq.label.job import Job
from music_ssl_fairseq.label.nearest_centroid import Labeler
from music_ssl_fairseq.label.sample import Reader


def sample_together(jobs: Sequence[Job], manifest: Manifest) -> None:
    """Sample the frames of all jobs that have no centroids yet, if they take the same frames."""
    jobs = [job for job in jobs if job.folder.centroids() is None]
    if not _can_share(jobs):
        return
    samples = [choose_sample(job, manifest)[0] for job in jobs]
    if any((sample.quotas != samples[0].quotas).any() for sample in samples):
        return
    for job in jobs:
        job.folder.make()
    widths = np.cumsum([0, *(job.front.dimension for job in jobs)]).tolist()
    columns = [slice(first, last) for first, last in pairwise(widths)]
    parts = [
        _OwnBlocks(job.folder.checkpoints, SAMPLE, own)
        for job, own in zip(jobs, columns, strict=True)
    ]
    shared = _SharedDir(parts[-1].checkpoints.path, parts)
    sample_blocks(jobs[0], samples[0], shared, Reader(_spec(jobs)))


def label_together(jobs: Sequence[Job], split: str, manifest: Manifest) -> None:
    """Assign the units of all jobs that have not labelled the split yet."""
    jobs = [job for job in jobs if not job.folder.is_finished(split, manifest)]
    found = [job.folder.centroids() for job in jobs]
    centroids = [each for each in found if each is not None]
    if not _can_share(jobs) or len(centroids) < len(jobs):
        return
    names = [job.folder.block_name(split, manifest) for job in jobs]
    parts = [
        _OwnBlocks(job.folder.checkpoints, name, slice(i, i + 1))
        for i, (job, name) in enumerate(zip(jobs, names, strict=True))
    ]
    labeler = Labeler(_spec(jobs), tuple(centroids))
    shared = _SharedDir(parts[-1].checkpoints.path, parts)
    assign_blocks(jobs[0], split, manifest, names[-1], shared, labeler)


def _can_share(jobs: Sequence[Job]) -> bool:
    return len(jobs) > 1 and all(job.features.name != DEEP for job in jobs)


def _spec(jobs: Sequence[Job]) -> FeatureSpec:
    return FeatureSpec(",".join(job.features.name for job in jobs))


@dataclass(frozen=True)
class _OwnBlocks:
    """The folder of a set's blocks, their name there, and its columns of the values."""

    checkpoints: CheckpointDir
    name: str
    columns: slice


@dataclass(frozen=True)
class _SharedDir(CheckpointDir):
    """Saves the parts of a block in the folders of several sets, in their order.

    A block counts as done once its last part exists.
    """

    parts: list[_OwnBlocks]

    def block(self, name: str, number: int) -> Path:
        last = self.parts[-1]
        return last.checkpoints.block(last.name, number)

    def save_block(self, name: str, number: int, block: Block) -> None:
        for part in self.parts:
            values = block.values  # of unreadable tracks alone: of no columns
            own = values[:, part.columns] if values.ndim > 1 else values
            part.checkpoints.save_block(part.name, number, block._replace(values=own))
