"""Sample and label with several features in one pass over the audio.

Each set of labels has a job and a folder of its own, as if it were made alone. The pass computes
all features of a track side by side and saves each set's part where its job looks for it; the jobs
then find their blocks done.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from music_ssl_fairseq.data.manifest import Manifest
from music_ssl_fairseq.features import FeatureSpec
from music_ssl_fairseq.jobs.checkpoint_dir import Block, CheckpointDir
from music_ssl_fairseq.label.assign_stage import assign_blocks
from music_ssl_fairseq.label.fit_stage import SAMPLE, choose_sample, sample_blocks
from music_ssl_fairseq.label.job import Job
from music_ssl_fairseq.label.nearest_centroid import Labeler
from music_ssl_fairseq.label.sample import SampleFeatures


def sample_together(jobs: Sequence[Job], manifest: Manifest) -> None:
    """Sample the frames of all jobs that have no centroids yet, if they take the same frames."""
    jobs = [job for job in jobs if job.folder.centroids() is None]
    if len(jobs) < 2:
        return
    samples = [choose_sample(job, manifest)[0] for job in jobs]
    if any((sample.quotas != samples[0].quotas).any() for sample in samples):
        return
    for job in jobs:
        job.folder.make()
    shared = _shared(jobs, [SAMPLE] * len(jobs), [job.front.dimension for job in jobs])
    sample_blocks(jobs[0], samples[0], shared, SampleFeatures(_spec(jobs)))


def label_together(jobs: Sequence[Job], split: str, manifest: Manifest) -> None:
    """Assign the units of all jobs that have not labelled the split yet."""
    jobs = [job for job in jobs if not job.folder.is_finished(split, manifest)]
    found = [job.folder.centroids() for job in jobs]
    centroids = [each for each in found if each is not None]
    if len(jobs) < 2 or len(centroids) < len(jobs):
        return
    names = [job.folder.block_name(split, manifest) for job in jobs]
    shared, labeler = _shared(jobs, names, [1] * len(jobs)), Labeler(_spec(jobs), tuple(centroids))
    assign_blocks(jobs[0], split, manifest, names[-1], shared, labeler)


def _spec(jobs: Sequence[Job]) -> FeatureSpec:
    return FeatureSpec(",".join(job.features.name for job in jobs))


@dataclass(frozen=True)
class _SharedDir(CheckpointDir):
    """Saves the columns of a block in the folders of several sets, in their order.

    A block counts as done once its last part exists.
    """

    folders: list[CheckpointDir]
    names: list[str]  # of the blocks in each folder
    widths: list[int]  # columns of each set

    def block(self, name: str, number: int) -> Path:
        return self.folders[-1].block(self.names[-1], number)

    def save_block(self, name: str, number: int, block: Block) -> None:
        # A block of unreadable tracks has a 1-d empty array, so it cannot be split into columns.
        parts: list[np.ndarray] = [block.values] * len(self.folders)
        if block.values.ndim > 1:
            parts = np.split(block.values, np.cumsum(self.widths)[:-1], axis=1)
        for folder, own_name, own in zip(self.folders, self.names, parts, strict=True):
            folder.save_block(own_name, number, block._replace(values=own))


def _shared(jobs: Sequence[Job], names: list[str], widths: list[int]) -> _SharedDir:
    folders = [job.folder.checkpoint_dir for job in jobs]
    return _SharedDir(folders[-1].path, folders, names, widths)
