"""`python -m music_ssl_fairseq label`: from manifests to pseudo-labels."""

import argparse
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from hydra_plugins._music_ssl_fairseq_command import example, shell_line
from music_ssl_fairseq.cli import (
    CHECKPOINT,
    Parser,
    add_workers,
    exit_status,
    new_parser,
    override,
    whole_number,
)
from music_ssl_fairseq.errors import InputError, warn
from music_ssl_fairseq.frames import amount, counted, hours
from music_ssl_fairseq.label.memory import parse_size
from music_ssl_fairseq.label.recipe import ALGORITHMS, MAX_FRAMES
from music_ssl_fairseq.runtime.imports import optional
from music_ssl_fairseq.runtime.machine import choose_device

if TYPE_CHECKING:
    from music_ssl_fairseq.data.manifest import Manifest
    from music_ssl_fairseq.label.job import Job
    from music_ssl_fairseq.label.label_folder import LabelFolder

_POSITIVE = whole_number(1)
STAGES = ("fit", "assign", "report")

DESCRIPTION = """\
Make pseudo-labels: give every frame of every track a unit, the number of its nearest centroid.
K-means fits the k centroids on a sample of the train manifest's frames.

It reads train.tsv and, if there is one, valid.tsv, and writes:
  train.km, valid.km                units, one line per track, as fairseq reads them
  *.units.npy, *.offsets.npy        the same as memory maps, which training here reads
  dict.km.txt                       the dictionary of units
  centroids.npy                     [k, dimension] float32
  metadata.json                     options, label_rate, inertia, versions, use of units

Equal options and manifests give equal labels, whatever the number of shards. Another number of
workers is another number of threads for K-means, whose sums then differ by rounding. The same
command resumes an interrupted run, and leaves a finished one as it is.
"""

EXAMPLES = """\
examples:
  python -m music_ssl_fairseq label --k 2000
  python -m music_ssl_fairseq label --k 500 --manifests manifests/jazz --labels labels/jazz --seed 1
  python -m music_ssl_fairseq label --k 500 --features mfcc+chroma --labels labels/mfcc+chroma
  python -m music_ssl_fairseq label --k 500 --features mfcc,chroma    # labels/mfcc, labels/chroma
  python -m music_ssl_fairseq label --k 2000 --labels labels/deep --features deep --layer 6 \\
      --checkpoint runs/music_hubert/config/checkpoints/checkpoint_best.pt
  sbatch --array=0-15 --wrap "python -m music_ssl_fairseq label --k 500"     # sixteen parts
  python -m music_ssl_fairseq label --k 500 --report                         # and a page on units

The manifests come from `python -m manifests_tools pretrain --root MUSIC_DIR`, and the labels go to
`fairseq-hydra-train --config-dir examples/music_hubert`.
"""


def get_parser() -> Parser:
    parser = new_parser("music_ssl_fairseq label", DESCRIPTION, EXAMPLES)
    parser.substitutes = {"--layer": "--layer=1"}  # --features deep needs one
    _add_features(parser)
    _add_places(parser)
    _add_kmeans(parser)
    _add_work(parser)
    return parser


def _add_features(parser: Parser) -> None:
    add = parser.option
    add(
        "--k K",
        "number of clusters, and so of units; each needs 40 frames of the sample, better 250 "
        "or more (default: %(default)s, as in the paper's base model)",
        default=500,
        type=_POSITIVE,
    )
    add(
        "--features NAME",
        "features to cluster: mfcc (Kaldi's 13 MFCC with deltas, as in HuBERT), mfcc60 (20 "
        "with deltas), logmel (80 bands), chroma (12 pitch classes) or cqt (84 semitones), all at "
        "100 frames per second; or deep, a layer of a model, mostly at 50. mfcc+chroma joins "
        "features, each scaled to the same spread. mfcc,chroma makes several sets of labels in one "
        "pass, each in LABELS/NAME",
        default="mfcc",
    )
    add("--checkpoint FILE", f"the model of --features deep: {CHECKPOINT}")
    add(
        "--layer L",
        "for --features deep: 0 for the projected output of the convolutions, 1 for the first "
        "Transformer layer and so on; HuBERT's second iteration takes 6 of 12",
        type=whole_number(0),
    )
    add(
        "--device",
        "auto: models of --features deep, and their K-means, run on all GPUs, one process each; "
        "all else runs on the CPU. cuda: K-means of other features runs on a GPU, too",
        default="auto",
        choices=("auto", "cpu", "cuda"),
    )


def _add_places(parser: Parser) -> None:
    add = parser.option
    add("--manifests", "folder with train.tsv and valid.tsv", default=Path("manifests"))
    add("--labels", "folder to write to", default=Path("labels"))
    add(
        "--stage",
        "do this alone; fit: sample frames and cluster them; assign: label all tracks with "
        "the centroids of fit; report: see --report (default: fit, then assign)",
        choices=STAGES,
    )
    add(
        "--centroids FILE",
        "use these centroids instead of fitting them: a .npy file, [k, dimension], or those "
        "beside a model on the Hugging Face hub (hf:USER/NAME); their number replaces --k",
        type=Path,
    )


def _add_kmeans(parser: Parser) -> None:
    add = parser.option
    add(
        "--memory SIZE",
        "memory of all processes together, such as 512M or 16G; limits the frames that "
        "K-means is fitted on, and the number of workers (default: 4G; with --checkpoint, twice "
        "the memory of its model is added)",
        type=parse_size,
    )
    add(
        "--max-frames N",
        "frames to fit K-means on, sampled from all train tracks in proportion to their "
        "length; more than the default lower the inertia on other frames by less than 1 %% at "
        f"k = 2000 (default: {MAX_FRAMES}, or as many as --memory holds)",
        type=_POSITIVE,
    )
    add(
        "--minibatch N",
        "for little memory: hold only N frames at a time. K-means is fitted on N frames, and "
        "--max-frames frames then pass once, in batches. Not scikit-learn's MiniBatchKMeans, which "
        "is --algorithm minibatch (default: hold all frames)",
        type=_POSITIVE,
    )
    add(
        "--algorithm",
        "lloyd: K-means in faiss, or in torch on a GPU; minibatch: scikit-learn's "
        "MiniBatchKMeans with the settings of fairseq's scripts, for reproductions: about ten "
        "times slower. It holds all frames; --minibatch N saves memory",
        default="lloyd",
        choices=ALGORITHMS,
    )
    add(
        "--iterations N",
        "most iterations of K-means over all sampled frames, after those over a part of "
        "them; it stops earlier when one lowers the inertia by less than 0.6 %%",
        default=30,
        type=_POSITIVE,
    )
    add(
        "--init",
        "how the first centroids are chosen: by faiss's AFK-MC2, which approximates "
        "k-means++, or at random",
        default="kmeans++",
        choices=("kmeans++", "random"),
    )
    add("--restarts N", "complete fits, of which the best counts", default=1, type=_POSITIVE)
    add("--seed N", "seed of the sample and of K-means", default=0, type=whole_number(0, 2**31 - 1))


def _add_work(parser: Parser) -> None:
    add = parser.option
    what = "processes that decode, compute features and assign units, and threads of K-means"
    add_workers(parser, what)
    add(
        "--num-shards N",
        "divide the tracks into N parts, and label one of them in this process; the last "
        "process to finish joins the parts (default: in a Slurm array its size, else 1)",
        type=_POSITIVE,
    )
    add(
        "--shard I",
        "which of these parts, from 0 (default: this task's place in the Slurm array)",
        type=int,
    )
    add(
        "--skip-unreadable",
        "give a track that cannot be read an empty line, so that labels stay aligned with the "
        "manifest; training leaves it out (default: label all others, then stop with its name)",
        action="store_true",
    )
    add(
        "--report",
        "also write LABELS/report.html, a page for the browser with each unit's use, pitch "
        "classes, loudness, neighbours and clips to play, and a map of all units",
        action="store_true",
    )
    add("--force", "start over, and overwrite other labels", action="store_true")


def run(arguments: argparse.Namespace) -> None:
    """Do what the command line says. Raises InputError about a wrong option or file."""
    reports = arguments.report or arguments.stage == "report"
    if reports:
        # Before hours of work rather than after them.
        optional("matplotlib", "plot")
    from music_ssl_fairseq.label.job import make_jobs
    from music_ssl_fairseq.label.several_label_sets import label_together, sample_together

    splits = _manifests(arguments.manifests)
    jobs = make_jobs(arguments, get_parser(), splits["train"])
    if arguments.stage in (None, "fit"):
        if len(jobs) > 1:
            sample_together(jobs, splits["train"])
        for job in jobs:
            _make_centroids(job, splits["train"], arguments.centroids, arguments.stage)
    if arguments.stage in (None, "assign"):
        for split, manifest in splits.items():
            if len(jobs) > 1:
                label_together(jobs, split, manifest)
        finished = [_assign(job, splits) for job in jobs]
        if not all(finished):
            return
    for job in jobs:
        if arguments.stage != "fit":
            _summarise(job.folder, splits)
        if reports:
            from music_ssl_fairseq.label_report.label_page import write_report

            folder = job.folder
            centroids = job.folder.centroids()
            assert centroids is not None
            page = write_report(folder.path, folder.metadata, centroids, splits, job.pool.workers)
            print(f"report: {page}")
    if arguments.stage is None:
        _show_next(arguments.manifests, [job.folder.path for job in jobs])


def _make_centroids(
    job: "Job", manifest: "Manifest", centroids: Path | None, stage: str | None
) -> None:
    from music_ssl_fairseq.label.fit_stage import fit_centroids, take_centroids

    if job.folder.centroids() is not None:
        if stage == "fit":
            print(f"{job.folder.path}: fitted already, by the same recipe from the same manifest")
        return
    if centroids is None:
        music = f"{counted(len(manifest), 'track')}, {amount(hours(manifest.num_samples))}"
        print(f"{job.folder.path}: clusters of {job.features.name}, k = {job.recipe.k}; {music}")
        fit_centroids(job, manifest)
    else:
        take_centroids(job, centroids)
    metadata = job.folder.metadata
    print(f"{job.folder.path}: {metadata['k']} centroids of {metadata['features']}")


def _assign(job: "Job", splits: dict[str, "Manifest"]) -> bool:
    """Label the splits; return whether all are finished."""
    from music_ssl_fairseq.data.audio_identity import changed_audio
    from music_ssl_fairseq.label.assign_stage import label_split

    folder = job.folder
    todo = {s: m for s, m in splits.items() if not folder.is_finished(s, m)}
    if folder.centroids() is not None:
        folder.write_dictionary()
        noted = folder.metadata.get("audio")
        record = folder.metadata["splits"].get("train", {})
        made = f"{folder.path / 'centroids.npy'} was"
        # If labels were made of the same audio, `notices` tells.
        if noted != record.get("audio"):
            warn(changed_audio(splits["train"], noted, made))
    if not todo:
        print(f"{folder.path}: finished already, by the same recipe from the same manifests")
    finished = [label_split(job, split, manifest) for split, manifest in todo.items()]
    if all(finished):
        folder.checkpoint_dir.remove()
    else:
        print(f"{job.shard} is done; the last shard to end joins all parts")
    return all(finished)


def _manifests(where: Path) -> dict[str, "Manifest"]:
    from music_ssl_fairseq.data.manifest import Manifest

    splits = {"train": Manifest(where / "train.tsv")}
    if (where / "valid.tsv").exists():
        splits["valid"] = Manifest(where / "valid.tsv")
    else:
        print(f"{where / 'valid.tsv'}: none, so train is labelled alone", file=sys.stderr)
    for manifest in splits.values():
        manifest.require_root()
    return splits


def _summarise(folder: "LabelFolder", splits: dict[str, "Manifest"]) -> None:
    """Print how the centroids were fitted, a line per split, and warnings."""
    from music_ssl_fairseq.label.assign_stage import notices

    metadata = folder.metadata
    if not metadata:
        raise InputError(f"{folder.path}: nothing there yet; run --stage fit, then --stage assign")
    rate = metadata["label_rate"]
    fitted, inertia = "of given centroids", metadata["train_inertia"]
    if inertia is not None:
        fitted = f"fitted on {metadata['frames_fitted']:,} frames, inertia {inertia:.4g}"
    what = f"{metadata['k']} units of {metadata['features']}, {rate:g} per second"
    print(f"{folder.path}: {what}, {fitted}")
    for split in splits:
        record = metadata["splits"].get(split)
        if record is None:
            raise InputError(f"{folder.target(split)}: not finished; run --stage assign first")
        unit_ms = 1000 * record["mean_run_length"] / rate
        music = f"{counted(record['tracks'], 'track')}, {amount(record['labels'] / rate / 3600)}"
        print(
            f"  {split}: {music}; "
            f"{record['used_clusters']} units used, perplexity {record['perplexity']:.0f}; "
            f"most frequent {100 * record['majority_share']:.2f} %; a unit lasts {unit_ms:.0f} ms"
        )
        if record["unreadable"]:
            lost = counted(len(record["unreadable"]), "track")
            print(f"  {split}: {lost} cannot be read, and so without units", file=sys.stderr)
    for sentence in notices(splits, metadata["splits"]):
        warn(sentence)


def _show_next(manifests: Path, labels: "list[Path]") -> None:
    """Print the command that trains on the labels: a base model, or without a GPU a tiny one."""
    sets = [folder.resolve() for folder in labels]
    of_base = "harmonic" if [folder.name for folder in sets] == ["mfcc", "chroma"] else "short"
    on_cpu = choose_device() == "cpu"
    name = "tiny" if on_cpu else of_base
    folder = shlex.quote(example("music_hubert"))
    command = f"fairseq-hydra-train --config-dir {folder} --config-name {name}"
    # Folders where the configuration looks by default are left out.
    if manifests.resolve() != Path("manifests").resolve():
        command += f" {override('task.data', manifests.resolve())}"
    top = Path("labels").resolve()
    if sets != [top / folder.name if name == "harmonic" else top for folder in sets]:
        command += f" {override('task.label_dir', *sets)}"
    remark = f"    # no GPU here; on a machine with one, --config-name {of_base}" if on_cpu else ""
    print(f"next: {shell_line(command)}{remark}")


def main(argv: list[str] | None = None) -> int:
    arguments = get_parser().parse_args(argv)
    return exit_status(lambda: run(arguments), arguments.labels)


if __name__ == "__main__":
    sys.exit(main())
