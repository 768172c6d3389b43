"""`--stage assign` of the labeler: assign a unit to every frame; warn of odd results."""

import sys
from collections.abc import Iterator
from functools import partial
from typing import Any

from music_ssl_fairseq import audio
from music_ssl_fairseq.data.audio_identity import audio_digest, changed_audio
from music_ssl_fairseq.data.copies import find_copies
from music_ssl_fairseq.data.manifest import Manifest, concerns
from music_ssl_fairseq.errors import AudioError, InputError
from music_ssl_fairseq.features.chunk_features import Track
from music_ssl_fairseq.frames import SAMPLE_RATE
from music_ssl_fairseq.jobs.blocks import BlockJob
from music_ssl_fairseq.jobs.checkpoint_dir import CheckpointDir
from music_ssl_fairseq.label.fit_stage import LABELS_LOCK
from music_ssl_fairseq.label.job import Job
from music_ssl_fairseq.label.join import join
from music_ssl_fairseq.label.nearest_centroid import Labeler
from music_ssl_fairseq.runtime.user_command import with_option


def label_split(job: Job, split: str, manifest: Manifest) -> bool:
    """Label this shard's part of a split; return whether the split is finished.

    The process that finds all parts done joins them.

    Raises InputError if a track cannot be read; what is done is kept.
    """
    folder, checkpoint_dir = job.folder, job.folder.checkpoint_dir
    centroids = folder.centroids()
    if centroids is None:
        raise InputError(
            f"{folder.path}: no centroids of this recipe to assign; run --stage fit first",
            with_option("--stage", "fit"),
        )
    name = folder.block_name(split, manifest)
    labeler = Labeler(job.features, (centroids,))
    num_blocks = assign_blocks(job, split, manifest, name, checkpoint_dir, labeler)
    with checkpoint_dir.locked(LABELS_LOCK):
        folder.reload()
        if folder.is_finished(split, manifest):
            return True
        if missing := checkpoint_dir.missing(name, num_blocks):
            print(
                f"{job.shard}: its part of {split} is done; {len(missing)} of {num_blocks} "
                "blocks are left to other shards",
                file=sys.stderr,
            )
            return False
        joined = join(checkpoint_dir, name, num_blocks, folder.target(split), len(centroids))
        silent = [track for track in joined.monotonous if _is_silent(manifest, track)]
        folder.finish(split, manifest, joined, silent)
    return True


def assign_blocks(
    job: Job,
    split: str,
    manifest: Manifest,
    name: str,
    checkpoint_dir: CheckpointDir,
    labeler: Labeler,
) -> int:
    """Save the units of this shard's blocks of a split; return the number of all blocks."""

    def track(index: int) -> Track:
        return Track(manifest.path(index), int(manifest.num_samples[index]))

    source = partial(audio_digest, manifest)
    labelling = BlockJob(name, split, manifest.num_samples, track, source, job.skip_unreadable)
    num_blocks = len(labelling.blocks)
    mine = range(job.shard.index, num_blocks, job.shard.count)
    labelling.run(checkpoint_dir, mine, labeler, job.pool)
    return num_blocks


_CHUNK_SAMPLES = 60 * SAMPLE_RATE
_NEARLY_ALL = 0.9  # share of all labels


def _is_silent(manifest: Manifest, track: int) -> bool:
    """Tell whether a track is silent; False if it cannot be read."""
    path = manifest.path(track)
    starts = range(0, int(manifest.num_samples[track]), _CHUNK_SAMPLES)
    try:
        return all(audio.is_silent(audio.read(path, start, _CHUNK_SAMPLES)) for start in starts)
    except AudioError:
        return False


def notices(splits: dict[str, Manifest], records: dict[str, Any]) -> Iterator[str]:
    """Yield warnings about labelled splits, with their `records` in metadata.json."""
    for split, manifest in splits.items():
        if found := changed_audio(manifest, records[split].get("audio"), "labels were"):
            yield found
        share = records[split]["majority_share"]
        if share > _NEARLY_ALL:
            yield (
                f"{split}: one unit has {100 * share:.1f} % of all labels, so they teach nothing: "
                "are the centroids of these features, and is the music more than noise or silence?"
            )
        silent = records[split].get("silent", [])
        if silent:
            yield (
                f"{split}: {len(silent)} of {len(manifest)} tracks are silent, and their frames "
                f"have labels all the same: take them out; the first is {manifest.path(silent[0])}"
            )
    if "valid" not in splits:
        return
    paths = [[m.path(i) for i in range(len(m))] for m in (splits["train"], splits["valid"])]
    copies = find_copies(paths[1], paths[0])
    if copies:
        first = next(iter(copies))
        yield (
            f"valid: {len(copies)} of {len(splits['valid'])} tracks are copies of tracks of train, "
            f"byte for byte; the first is {first}, a copy of {copies[first]}: make the manifests "
            "again, which leaves copies out"
        )
    yield from concerns(splits["valid"])
