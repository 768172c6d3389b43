"""The settings of one run of the labeler, checked before any work is done."""

import os
import shlex
import sys
from argparse import ArgumentParser, Namespace
from dataclasses import dataclass, replace

from music_ssl_fairseq.data.manifest import Manifest
from music_ssl_fairseq.errors import InputError
from music_ssl_fairseq.features import DEEP, FeatureSpec, FrontEnd, front_end
from music_ssl_fairseq.jobs.pool import WorkerPool, start_server
from music_ssl_fairseq.jobs.shards import Shard, choose_shard
from music_ssl_fairseq.label import memory
from music_ssl_fairseq.label.external_centroids import centroids_file, load_centroids
from music_ssl_fairseq.label.kmeans import check_enough
from music_ssl_fairseq.label.label_folder import LabelFolder
from music_ssl_fairseq.label.recipe import MAX_FRAMES, Recipe
from music_ssl_fairseq.runtime.files import checksum
from music_ssl_fairseq.runtime.machine import choose_device
from music_ssl_fairseq.runtime.user_command import with_options

_OPTIONS_OF_THE_RUN = {"manifests", "labels", "stage", "workers", "num_shards", "shard", "report"}
"""Options that are not repeated when the same labels are asked for again."""
_FIXED_BY_FAIRSEQ = ("iterations", "init", "restarts", "minibatch")


@dataclass(frozen=True)
class Job:
    """One run of the labeler."""

    folder: LabelFolder  # where labels go, with their recipe
    features: FeatureSpec  # of the recipe; their device is where models run
    pool: WorkerPool  # who computes features
    device: str  # where K-means runs, `cpu` or `cuda`
    threads: int  # of K-means on the CPU
    shard: Shard  # which part of the assignment is this process's
    skip_unreadable: bool  # give tracks that cannot be read no labels

    @property
    def recipe(self) -> Recipe:
        return self.folder.recipe

    @property
    def front(self) -> FrontEnd:
        """The front end of this process, on the CPU. Workers make their own."""
        return front_end(replace(self.features, device="cpu"))


def make_jobs(arguments: Namespace, parser: ArgumentParser, train: Manifest) -> list[Job]:
    """Return one job per set of labels: with several features, each in a folder of its name."""
    sets = arguments.features.split(",")
    if len(sets) == 1:
        return [make_job(arguments, parser, train)]
    if arguments.centroids is not None or DEEP in sets:
        raise InputError(
            f"--features {arguments.features}: several at once take no --centroids, and {DEEP} is "
            "not one of them",
            with_options({"--features": next(name for name in sets if name != DEEP)}),
        )
    FeatureSpec(arguments.features, arguments.checkpoint, arguments.layer)
    return [
        make_job(
            Namespace(**{**vars(arguments), "features": name, "labels": arguments.labels / name}),
            parser,
            train,
        )
        for name in sets
    ]


def make_job(arguments: Namespace, parser: ArgumentParser, train: Manifest) -> Job:
    """Return a job, after all checks that need no audio.

    Raises InputError if options contradict each other, the manifest or existing labels.
    """
    a = arguments
    shard = choose_shard(a.shard, a.num_shards, os.environ)
    if a.force and shard.count > 1:
        raise InputError(
            "--force: shards would undo each other's work; run this command once with --stage fit "
            "--force, by itself (--num-shards 1), and then the shards without --force"
        )
    if a.algorithm == "minibatch":
        for name in _FIXED_BY_FAIRSEQ:
            if getattr(a, name) != parser.get_default(name):
                apart = "; --minibatch N goes with lloyd" if name == "minibatch" else ""
                raise InputError(
                    f"--algorithm minibatch has the settings of fairseq's scripts{apart}: leave "
                    f"out --{name}, or --algorithm",
                    with_options({f"--{name}": None}),
                )
    features = FeatureSpec(a.features, a.checkpoint, a.layer)
    start_server([f"{__package__}.sample", f"{__package__}.nearest_centroid", *features.modules])
    # Without a model, K-means takes seconds on a CPU, and torch takes as long to load.
    device = choose_device("cpu" if a.device == "auto" and a.features != DEEP else a.device)
    computed_on = device if a.features == DEEP else "cpu"
    model = memory.model_size(features.checkpoint)
    bound = memory.memory_bound(a.memory, model)
    recipe = _recipe(a, features, train, bound, model)
    workers = memory.workers_that_fit(bound, a.workers, model)
    if workers < a.workers:
        size = memory.show_size(bound)
        print(f"{workers} of {a.workers} workers: --memory {size} holds no more", file=sys.stderr)
    gpus: tuple[str, ...] = ()  # a process each, instead of workers on the CPU
    if computed_on != "cpu":
        import torch

        gpus = tuple(f"cuda:{i}" for i in range(torch.cuda.device_count()))
    return Job(
        folder=LabelFolder(a.labels, recipe, a.force, _remarks(a, parser)),
        features=replace(features, device=computed_on),
        pool=WorkerPool(len(gpus) or workers, gpus),
        device=device,
        threads=a.workers,
        shard=shard,
        skip_unreadable=a.skip_unreadable,
    )


def _remarks(a: Namespace, parser: ArgumentParser) -> dict[str, str]:
    """Return the options that labels are made with, and of which manifests, for later messages."""
    options = ["--k", str(a.k)]
    for action in parser._actions:
        value = getattr(a, action.dest, None)
        if action.dest in {"k", "force", *_OPTIONS_OF_THE_RUN} or value in (None, False):
            continue
        if value is True:
            options.append(action.option_strings[0])
        elif value != parser.get_default(action.dest):
            options += [action.option_strings[0], str(value)]
    return {"options": shlex.join(options), "manifests": str(a.manifests)}


def _recipe(a: Namespace, features: FeatureSpec, train: Manifest, bound: int, model: int) -> Recipe:
    front = front_end(features)
    k = a.k if a.centroids is None else len(load_centroids(centroids_file(a.centroids)))
    if a.centroids is None:
        check_enough(sum(map(front.grid.num_frames, train.num_samples.tolist())), k)
    held = a.minibatch or a.max_frames
    num_frames = memory.check_frames(held, MAX_FRAMES, bound, front.dimension, k, model)
    same = ("features", "seed", "iterations", "layer", "init", "restarts", "minibatch", "algorithm")
    return Recipe(
        **{name: getattr(a, name) for name in same},
        k=k,
        max_frames=a.max_frames or max(num_frames, MAX_FRAMES if a.minibatch else 0),
        train_manifest=checksum(train.file),
        checkpoint=front.fingerprint,
        external_centroids=None if a.centroids is None else checksum(centroids_file(a.centroids)),
    )
