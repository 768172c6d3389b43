"""`python -m music_ssl_fairseq extract`: features of a manifest's tracks, on disk."""

import argparse
import contextlib
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from music_ssl_fairseq.cli import (
    CHECKPOINT,
    Parser,
    exit_status,
    new_parser,
    real_number,
    whole_number,
)
from music_ssl_fairseq.errors import InputError
from music_ssl_fairseq.runtime.machine import available_cpus
from music_ssl_fairseq.runtime.user_command import newest_run, with_option

if TYPE_CHECKING:
    from music_ssl_fairseq.data.manifest import Manifest
    from music_ssl_fairseq.extract.run import Extraction

DESCRIPTION = """\
Compute a frozen model's hidden states for every track of a manifest, and write them as NumPy files.

Layer 0 is the projected output of the convolutions, layer n that of the n-th Transformer layer.
Audio is resampled and normalised as the model was trained; long tracks go through it in windows
that overlap, and are put together so that no seam shows.

--pool mean     DIR/features.npy: [tracks, layers, D] float32, one row per track, in the
                manifest's order; NaN for a track that cannot be read
--pool frames   DIR/NAME.npy for each track, NAME being its name in the manifest with its suffix:
                [layers, frames, D]

DIR/metadata.json says what made them, DIR/index.tsv lists the tracks, and DIR/left_out.tsv those
that could not be read. The same command resumes an interrupted run, and computes again what
DIR/checksums.npy shows to be damaged.
"""

EXAMPLES = """\
examples:
  python -m music_ssl_fairseq extract --checkpoint checkpoint_best.pt \\
      --manifest manifests/train.tsv --layer 0-12 --pool mean --out features/train
  python -m music_ssl_fairseq extract --checkpoint hubert-base-ls960/ \\
      --manifest manifests/train.tsv --layer 6 --pool frames --out features/layer6

then, in Python:
  features = numpy.load("features/train/features.npy", mmap_mode="r")[:, 7]  # layer 7
"""

_COMPILE_SECONDS = 100 * 3600  # of audio from which compiling kernels, about a minute, pays


def get_parser() -> Parser:
    parser = new_parser("music_ssl_fairseq extract", DESCRIPTION, EXAMPLES)
    add = parser.option
    add("--checkpoint FILE", f"the model: {CHECKPOINT}", type=Path, required=True)
    add("--manifest TSV", "manifest of the tracks", type=Path, required=True)
    add("--out DIR", "folder to write to", type=Path, required=True)
    add(
        "--layer LAYERS",
        "layers, in this order: 6, or 0-12, or 0,4,8-12 (default: all)",
        type=_layers,
    )
    add(
        "--pool",
        "mean over each track's frames, or every frame: 12 layers of 768 values are 55 MB per "
        "minute of audio in float16",
        default="mean",
        choices=["mean", "frames"],
    )
    add(
        "--dtype",
        "type of --pool frames; means are float32",
        default="float16",
        choices=["float16", "float32"],
    )
    add(
        "--window SECONDS",
        "length of the windows of long tracks, 6 or more, because they overlap; tracks up to "
        "1.5 windows stay whole",
        default=30.0,
        type=real_number(6),
    )
    _add_speed(parser)
    add("--force", "overwrite features of other settings in --out", action="store_true")
    return parser


def _add_speed(parser: Parser) -> None:
    add = parser.option
    add(
        "--batch-seconds SECONDS",
        "audio that goes through the model together (default: 480 on a GPU, which takes about "
        "10 GB with a base model; 30 on a CPU)",
        type=real_number(0),
    )
    add("--device", "cpu, cuda or cuda:N (default: cuda if there is a GPU)")
    add(
        "--precision",
        "arithmetic of the model; auto: bf16 on GPUs that have it, else fp32",
        default="auto",
        choices=["auto", "bf16", "fp32"],
    )
    add(
        "--compile",
        "compile kernels for the GPU, which takes about a minute; auto: from 100 hours of audio on",
        default="auto",
        choices=["auto", "on", "off"],
    )
    add(
        "--workers N",
        "processes that read audio (default: on a GPU all CPUs but one, at most 16; else 1)",
        type=whole_number(0),
    )


def _layers(text: str) -> list[int]:
    """Parse `0,4,8-12` to `[0, 4, 8, 9, 10, 11, 12]`."""
    layers: list[int] = []
    for part in text.split(","):
        first, dash, last = part.strip().partition("-")
        if not first.isdigit() or (dash and not last.isdigit()):
            raise argparse.ArgumentTypeError(f"{text!r}: expected something like 6, 0-12 or 0,4,8")
        span = range(int(first), int(last or first) + 1)
        if not span:
            raise argparse.ArgumentTypeError(f"{text!r}: {part.strip()} counts downwards")
        layers += span
    return list(dict.fromkeys(layers))


def run(a: argparse.Namespace) -> bool:
    """Do what the command line says; return whether every track could be read."""
    from tqdm import tqdm

    from music_ssl_fairseq.data.manifest import Manifest
    from music_ssl_fairseq.extract.batches import Cut
    from music_ssl_fairseq.extract.run import report
    from music_ssl_fairseq.extract.store import FrameStore, MeanStore, open_folder, write_index
    from music_ssl_fairseq.features import FRONT_ENDS
    from music_ssl_fairseq.runtime.files import hold, let_go

    if str(a.checkpoint) in FRONT_ENDS and not a.checkpoint.exists():
        newest = newest_run()
        raise InputError(
            f"--checkpoint {a.checkpoint}: a front end; extract writes the features of models",
            with_option("--checkpoint", newest)
            if newest
            else "python -m music_ssl_fairseq extract --help",
        )
    tracks = Manifest(a.manifest)
    tracks.require_root()
    extraction = _extraction(a, tracks)
    upstream, layers, frames = extraction.upstream, extraction.layers, extraction.frames
    settings = extraction.settings(tracks)
    with contextlib.ExitStack() as stack:
        lock = a.out / "extract.lock"
        way_out = "wait until it has ended, or give another folder with --out"
        stack.callback(let_go, lock, hold(lock, "extracts features", way_out))
        remarks = {"checkpoint": upstream.path}
        checksums = open_folder(a.out, tracks, settings, remarks, a.force)
        upstream.drop_above(max(layers))
        cut = Cut(tracks, upstream.grid, extraction.windowing)
        to = a.out, cut, (len(layers), upstream.dimension)
        store = FrameStore(*to, checksums, frames) if frames else MeanStore(*to, checksums)
        stack.callback(store.close)
        if store.damaged:
            print(
                f"{a.out}: {len(store.damaged)} of {len(tracks)} tracks are missing, damaged or "
                "incomplete: they are computed again",
                file=sys.stderr,
            )
        write_index(a.out, tracks, store.cut)
        workers = a.workers
        if workers is None:
            on_gpu = upstream.device.type == "cuda"
            workers = min(16, max(1, available_cpus() - 1)) if on_gpu else 1
        with tqdm(total=0, desc="extract", unit=" audio-s", unit_scale=True) as bar:
            outcome = extraction.run(tracks, store, workers, bar)
        store.finish()
        report(a.out, tracks, outcome)
    return not outcome.left_out


def _extraction(a: argparse.Namespace, tracks: "Manifest") -> "Extraction":
    """Load the model, and decide how it is run."""
    import torch

    from music_ssl_fairseq.extract.run import Extraction
    from music_ssl_fairseq.fast.dispatch import can_compile
    from music_ssl_fairseq.frames import SAMPLE_RATE
    from music_ssl_fairseq.runtime.machine import choose_device
    from music_ssl_fairseq.upstream import load
    from music_ssl_fairseq.upstream.windows import Windowing

    windowing = Windowing(a.window, whole=1.5 * a.window)
    device = torch.device(choose_device(a.device or "auto"))
    on_gpu = device.type == "cuda"
    upstream = load(a.checkpoint, device, a.precision)
    layers = upstream.check_layers(range(upstream.num_layers + 1) if a.layer is None else a.layer)
    frames = a.dtype if a.pool == "frames" else None
    batch_seconds = a.batch_seconds or (480 if on_gpu else 30)
    worthwhile = int(tracks.num_samples.sum()) > _COMPILE_SECONDS * SAMPLE_RATE
    wanted = a.compile == "on" or (a.compile == "auto" and worthwhile)
    compiled = on_gpu and wanted and can_compile()
    return Extraction(upstream, layers, frames, windowing, batch_seconds, compiled)


def main(argv: list[str] | None = None) -> int:
    """Run the command; return the exit status, 1 also if a track was left out."""
    arguments = get_parser().parse_args(argv)
    return exit_status(lambda: run(arguments), arguments.out)


if __name__ == "__main__":
    sys.exit(main())
