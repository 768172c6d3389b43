"""`python -m music_ssl_fairseq.label`: from manifests to pseudo-labels."""

import argparse
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from music_ssl_fairseq.cpus import available_cpus
from music_ssl_fairseq.errors import InputError
from music_ssl_fairseq.features import Features, front_end

if TYPE_CHECKING:
    from music_ssl_fairseq.data.manifest import Manifest
    from music_ssl_fairseq.label.recipe import LabelFolder

DESCRIPTION = """\
Give every frame of every track a unit: the number of the nearest of k centroids, which K-means
fits on a sample of the train manifest's frames. Reads train.tsv and, if it is there, valid.tsv;
writes train.km, valid.km (a line a track, as fairseq reads them), dict.km.txt, centroids.npy
([k, dimension] float32) and metadata.json (recipe, label_rate, inertia, versions, usage of units).

Equal options and manifests give equal labels, whatever the number of workers. A run that was
interrupted is continued by the same command; one that has finished is left as it is.
"""

EXAMPLES = """\
examples:
  python -m music_ssl_fairseq.label --k 2000
  python -m music_ssl_fairseq.label --k 500 --manifests manifests/jazz --labels labels/jazz --seed 1
  python -m music_ssl_fairseq.label --k 500 --features mfcc+chroma --labels labels/mfcc+chroma
  python -m music_ssl_fairseq.label --k 2000 --labels labels/deep --features deep --layer 6 \\
      --checkpoint runs/music_hubert/config/checkpoints/checkpoint_best.pt

The manifests come from `python -m manifests_tools pretrain --root MUSIC_DIR`, and the labels go to
`fairseq-hydra-train --config-dir examples/music_hubert`.
"""


def get_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m music_ssl_fairseq.label",
        description=DESCRIPTION,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add(
        "--k",
        type=_positive,
        default=500,
        metavar="K",
        help="clusters, that is different units (default: %(default)s, as HuBERT's first "
        "iteration; some 40 frames each are the least, 250 and more are good)",
    )
    add(
        "--features",
        default="mfcc",
        metavar="NAME",
        help="what is clustered: mfcc (Kaldi's 13 MFCC with deltas, as in HuBERT), mfcc60 (20 with "
        "deltas), logmel (80 bands), chroma (12 pitch classes), cqt (84 semitones), all 100 frames "
        "a second; several joined as in mfcc+chroma, each scaled to the same scatter; or deep, a "
        "layer of a model, mostly 50 frames a second (default: %(default)s)",
    )
    add(
        "--checkpoint",
        metavar="FILE",
        help="for --features deep: the model, of this package, of fairseq (HuBERT, data2vec, "
        "wav2vec 2.0) or a Hugging Face folder",
    )
    add(
        "--layer",
        type=int,
        metavar="L",
        help="for --features deep: 0 for the projected output of the convolutions, 1 for the first "
        "Transformer layer and so on; HuBERT's second iteration takes 6 of 12",
    )
    add(
        "--device",
        default="cpu",
        metavar="DEVICE",
        help="for --features deep: where the model runs, cpu or cuda (default: %(default)s)",
    )
    add(
        "--manifests",
        type=Path,
        default=Path("manifests"),
        metavar="DIR",
        help="folder with train.tsv and valid.tsv (default: %(default)s)",
    )
    add(
        "--labels",
        type=Path,
        default=Path("labels"),
        metavar="DIR",
        help="folder to write to (default: %(default)s)",
    )
    add(
        "--max-frames",
        type=_positive,
        default=1_000_000,
        metavar="N",
        help="frames to fit K-means on, a sample over all train tracks, each in proportion to its "
        "length; bounds memory (156 bytes an MFCC frame) and time, and is enough for k = 2000: "
        "more lower the inertia on other frames by less than 1 %% (default: %(default)s)",
    )
    add(
        "--iterations",
        type=_positive,
        default=30,
        metavar="N",
        help="K-means iterations at most; fewer if the centroids come to rest (default: "
        "%(default)s)",
    )
    add(
        "--seed",
        type=_seed,
        default=0,
        metavar="N",
        help="of the sample and of K-means (default: %(default)s)",
    )
    add(
        "--workers",
        type=_positive,
        default=available_cpus(),
        metavar="N",
        help="processes that decode, compute features and assign units, and threads of K-means "
        "(default: the CPUs this process may use, here %(default)s)",
    )
    add("--force", action="store_true", help="start over, and overwrite other labels")
    return parser


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError("must be at least 1")
    return value


def _seed(text: str) -> int:
    value = int(text)
    if not 0 <= value < 2**31:
        raise argparse.ArgumentTypeError("must be from 0 to 2147483647")
    return value


def run(
    k: int,
    features: str,
    checkpoint: str | None,
    layer: int | None,
    device: str,
    manifests: Path,
    labels: Path,
    max_frames: int,
    iterations: int,
    seed: int,
    workers: int,
    force: bool,
) -> None:
    """Do what the command line says; see `get_parser`.

    Raises:
        InputError: about anything wrong with the manifests, the audio or existing labels.
    """
    from music_ssl_fairseq.label.recipe import LabelFolder, Recipe, fingerprint
    from music_ssl_fairseq.label.stages import fit_centroids, label

    chosen = Features(features, checkpoint, layer, device)
    splits = _manifests(manifests)
    recipe = Recipe(
        features,
        k,
        seed,
        iterations,
        max_frames,
        fingerprint(splits["train"]),
        front_end(chosen).fingerprint,
        layer,
    )
    folder = LabelFolder(labels, recipe, force)
    todo = {s: m for s, m in splits.items() if not folder.is_finished(s, m)}
    if not todo:
        print(f"{labels}: finished already, by the same recipe from the same manifests")
    else:
        centroids = folder.centroids()
        if centroids is None:
            centroids = fit_centroids(folder, chosen, splits["train"], workers)
        else:
            _say(f"{labels}: going on with the centroids that are there")
        for split, manifest in todo.items():
            label(folder, chosen, centroids, split, manifest, workers)
    _summarise(folder, splits)
    _say_next(manifests, labels)


def _manifests(where: Path) -> dict[str, "Manifest"]:
    from music_ssl_fairseq.data.manifest import Manifest

    splits = {"train": Manifest(where / "train.tsv")}
    if (where / "valid.tsv").exists():
        splits["valid"] = Manifest(where / "valid.tsv")
    else:
        _say(f"{where / 'valid.tsv'}: none, so train is labelled alone")
    return splits


def _summarise(folder: "LabelFolder", splits: dict[str, "Manifest"]) -> None:
    metadata = folder.metadata
    rate = metadata["label_rate"]
    print(
        f"{folder.path}: k = {metadata['k']} units of {metadata['features']}, {rate:g} a second, "
        f"fitted on {metadata['frames_fitted']} frames, inertia {metadata['train_inertia']:.4g}"
    )
    for split in splits:
        record = metadata["splits"][split]
        run = record["mean_run_length"]
        print(
            f"  {split}: {record['tracks']} tracks, {record['labels'] / rate / 3600:.2f} h; "
            f"{record['used_clusters']} units used, perplexity {record['perplexity']:.0f}; "
            f"guessing the commonest unit is right in {100 * record['majority_share']:.2f} %; "
            f"a unit lasts {run:.1f} frames ({1000 * run / rate:.0f} ms)"
        )


def _say_next(manifests: Path, labels: Path) -> None:
    command = "fairseq-hydra-train --config-dir examples/music_hubert"
    # These two are where the configuration looks by itself.
    if manifests.resolve() != Path("manifests").resolve():
        command += f" task.data={shlex.quote(str(manifests.resolve()))}"
    if labels.resolve() != Path("labels").resolve():
        command += f" task.label_dir={shlex.quote(str(labels.resolve()))}"
    print(f"next: {command}")


def _say(line: str) -> None:
    print(line, file=sys.stderr)


def main(argv: list[str] | None = None) -> int:
    """Entry point: the exit status."""
    arguments = get_parser().parse_args(argv)
    try:
        run(**vars(arguments))
    except InputError as error:
        _say(f"error: {error}")
        return 1
    except OSError as error:  # of audio it is an InputError: this is a full disk or the like
        _say(f"error: {error.filename or arguments.labels}: {error.strerror or error}")
        return 1
    except KeyboardInterrupt:
        _say("interrupted; the same command, without --force, goes on from here")
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
