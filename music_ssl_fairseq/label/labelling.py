"""The second stage of labelling: assign a unit to every frame."""

import sys
from functools import partial

from music_ssl_fairseq.data.audio_identity import audio_digest
from music_ssl_fairseq.data.manifest import Manifest
from music_ssl_fairseq.errors import InputError
from music_ssl_fairseq.features.chunk_features import Track
from music_ssl_fairseq.jobs.blocks import BlockJob
from music_ssl_fairseq.jobs.checkpoint_dir import CheckpointDir
from music_ssl_fairseq.label.assign import Labeller
from music_ssl_fairseq.label.fitting import FIT_LOCK
from music_ssl_fairseq.label.job import Job
from music_ssl_fairseq.label.join import join
from music_ssl_fairseq.label.notices import is_silent


def label_split(job: Job, split: str, manifest: Manifest) -> bool:
    """Label this shard's part of a split; return whether the split is finished.

    The process that finds all parts done joins them.

    Raises:
        InputError: if a track cannot be read; what is done is kept.
    """
    folder, checkpoints = job.folder, job.folder.checkpoints
    centroids = folder.centroids()
    if centroids is None:
        raise InputError(
            f"{folder.path}: no centroids of this recipe to assign; run --stage fit first"
        )
    name = folder.block_name(split, manifest)
    labeller = Labeller(job.features, centroids)
    num_blocks = assign_blocks(job, split, manifest, name, checkpoints, labeller)
    with checkpoints.locked(FIT_LOCK):
        folder.reload()
        if folder.is_finished(split, manifest):
            return True
        if missing := checkpoints.missing(name, num_blocks):
            print(
                f"{job.shard}: its part of {split} is done; {len(missing)} of {num_blocks} "
                "blocks are other shards'",
                file=sys.stderr,
            )
            return False
        joined = join(checkpoints, name, num_blocks, folder.target(split), len(centroids))
        silent = [track for track in joined.monotonous if is_silent(manifest, track)]
        folder.finish(split, manifest, joined, silent)
    return True


def assign_blocks(
    job: Job, split: str, manifest: Manifest, name: str, done: CheckpointDir, labeller: Labeller
) -> int:
    """Assign units in this shard's blocks of a split, saved in `done`; return the number of all."""

    def track(index: int) -> Track:
        return Track(manifest.path(index), int(manifest.num_samples[index]))

    source = partial(audio_digest, manifest)
    labelling = BlockJob(name, split, manifest.num_samples, track, source, job.skip_unreadable)
    num_blocks = len(labelling.blocks)
    mine = range(job.shard.index, num_blocks, job.shard.count)
    labelling.run(done, mine, labeller, job.pool)
    return num_blocks
