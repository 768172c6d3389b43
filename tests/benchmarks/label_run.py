"""Time the labeler as a whole, from FLAC to labels, against what fairseq's scripts do.

    python -m tests.benchmarks.label_run --manifests manifests            # MFCC
    python -m tests.benchmarks.label_run --manifests manifests --deep     # layer 6 of a base model
    python -m tests.benchmarks.label_run --hours 0.1 --k 20 --small       # that it works

Ours is the command, in a process of its own and from the start of Python, once for each stage:
`fit` (sampling frames and K-means) and `assign`. What K-means adds to a run hardly depends on the
corpus, so both are given. The reference is the way of `dump_mfcc_feature.py`, or
`dump_hubert_feature.py`, and `dump_km_label.py`: a track after the other, with the same centroids,
and without the files that lie between these scripts; it stops after `--reference-seconds`. What
bounds ours is the slower of reading and computing: reading alone is timed in as many processes.

`--manifests` has a train.tsv of real music, whose tracks are listed again until there are
`--hours`. Without it, files of `--track-seconds` are made on the spot. The base model has random
weights. Deep labels of tracks longer than 45 s differ from the reference's, whose windows of 100 s
do not overlap.
"""

import argparse
import logging
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from music_ssl_fairseq import audio
from music_ssl_fairseq.data.manifest import Manifest
from music_ssl_fairseq.runtime.machine import available_cpus
from tests import checkpoints
from tests.benchmarks.extract import BASE, SAMPLE_RATE, make_corpus, make_models
from tests.benchmarks.kmeans import assign_fairseq
from tests.benchmarks.label_memory import repeat_manifest
from tests.reference_mfcc import reference_mfcc

GPU = torch.cuda.is_available()
CHUNK = 1_600_000  # samples that dump_hubert_feature.py hands to the model at once


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--manifests", type=Path, help="folder with a train.tsv (default: made-up files)")
    add("--deep", action="store_true", help="deep features instead of MFCC")
    add("--layer", type=int, default=6, help="of deep features (default: %(default)s)")
    add("--k", type=int, default=500, help="default: %(default)s")
    add("--hours", type=float, default=20.0 if GPU else 5.0, help="default here: %(default)s")
    add("--track-seconds", type=float, default=240.0, help="default: %(default)s")
    add("--device", choices=["auto", "cpu", "cuda"], default="auto", help="of the labeler")
    add("--workers", type=int, default=available_cpus(), help="default: %(default)s")
    add("--memory", default="16G" if GPU else "4G", help="of the labeler (default: %(default)s)")
    add("--reference-seconds", type=float, default=20.0, help="default: %(default)s")
    add("--small", action="store_true", help="a tiny model, to see that the command works")
    return parser.parse_args()


def corpus(args: argparse.Namespace, folder: Path) -> Manifest:
    """A train manifest of at least so many hours."""
    file = folder / "manifests" / "train.tsv"
    source = args.manifests and args.manifests / "train.tsv"
    if not source:
        source = folder / "made.tsv"
        make_corpus(folder, 4 * args.track_seconds, args.track_seconds).file.rename(source)
    repeat_manifest(source, file, args.hours)
    return Manifest(file)


def label(args: argparse.Namespace, folder: Path, stage: str) -> float:
    """Seconds of a stage of our command."""
    options = [f"--{name}={folder / name}" for name in ("manifests", "labels")]
    options += [f"--{name}={getattr(args, name)}" for name in ("k", "workers", "memory", "device")]
    if args.deep:
        options += ["--features=deep", f"--checkpoint={folder}/base.pt", f"--layer={args.layer}"]
    began = time.perf_counter()
    subprocess.run(
        [sys.executable, "-m", "music_ssl_fairseq.label", *options, "--stage", stage],
        check=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        cwd=Path(__file__).parents[2],
    )
    return time.perf_counter() - began


def read(path: Path) -> int:
    return len(audio.read(path))


def reading_rate(manifest: Manifest, workers: int) -> float:
    """Seconds of audio per second that so many processes decode, without their start."""
    paths = [manifest.path(i) for i in range(len(manifest))]
    with ProcessPoolExecutor(workers) as pool:
        list(pool.map(read, paths[:workers]))
        began = time.perf_counter()
        samples = sum(pool.map(read, paths, chunksize=2))
        return samples / SAMPLE_RATE / (time.perf_counter() - began)


def deep(model: torch.nn.Module, layer: int, waveform: Tensor) -> Tensor:
    """As dump_hubert_feature.py has them."""
    model = model.cuda() if GPU else model
    parts = (waveform.cuda() if GPU else waveform).split(CHUNK, 1)
    found = [model.extract_features(p, padding_mask=None, output_layer=layer)[0] for p in parts]
    return torch.cat(found, 1)[0].cpu()


@torch.no_grad()
def reference(
    features: Callable[[Tensor], Tensor], manifest: Manifest, folder: Path, seconds: float
) -> tuple[float, float]:
    """Seconds of audio per second, and the share of labels that are the same as ours."""
    centroids = np.load(folder / "labels" / "centroids.npy")
    ours = (folder / "labels" / "train.km").read_text().splitlines()
    done = same = count = 0
    began = time.perf_counter()
    for i in range(len(manifest)):
        # Not fairseq's get_features_or_waveform, which today's torchaudio makes fail.
        waveform = audio.read(manifest.path(i))
        frames = features(torch.from_numpy(waveform).view(1, -1))
        units = assign_fairseq([frames.numpy()], centroids)
        line = " ".join(map(str, units.tolist())).split()
        done += len(waveform)
        same += sum(a == b for a, b in zip(line, ours[i].split(), strict=False))
        count += len(line)
        if time.perf_counter() - began > seconds:
            break
    return done / SAMPLE_RATE / (time.perf_counter() - began), same / count


def main() -> None:
    args = parse()
    logging.disable(logging.INFO)
    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        manifest = corpus(args, folder)
        features: Callable[[Tensor], Tensor] = reference_mfcc
        if args.deep:
            theirs = make_models({} if args.small else BASE, torch.device("cpu"), "fp32")[1]
            checkpoints.write(folder / "base.pt", "hubert", theirs)
            features = partial(deep, theirs, args.layer)
        seconds = manifest.num_samples.sum() / SAMPLE_RATE
        where = torch.cuda.get_device_name() if GPU else "no GPU"
        print(
            f"{where}, {args.workers} CPUs, {seconds / 3600:.1f} h of audio, "
            f"{f'layer {args.layer}' if args.deep else 'MFCC'}, k = {args.k}, "
            f"--device {args.device}\n"
        )
        print("| | seconds | audio-s/s |\n|---|---|---|")
        fit = label(args, folder, "fit")
        print(f"| fit | {fit:.1f} | |", flush=True)
        assign = label(args, folder, "assign")
        print(f"| assign | {assign:.1f} | {seconds / assign:,.0f} |")
        print(f"| both | {fit + assign:.1f} | {seconds / (fit + assign):,.0f} |", flush=True)
        print(f"| reading alone | | {reading_rate(manifest, args.workers):,.0f} |", flush=True)
        theirs_rate, same = reference(features, manifest, folder, args.reference_seconds)
        print(f"| fairseq's way of labelling | | {theirs_rate:,.0f} |")
        ratio = seconds / assign / theirs_rate
        print(f"\nlabelling: {ratio:.1f} times as fast; {100 * same:.2f} % of labels the same")


if __name__ == "__main__":
    main()
