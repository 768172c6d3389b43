"""Seconds of audio per second that features are extracted from, of a base model, from FLAC.

    python -m tests.benchmarks.extract            # on a GPU if there is one
    python -m tests.benchmarks.extract --device cpu --minutes 5

Measures, on the same files, in one process: reading alone (decoding in the worker processes, and
handing over), the model alone (windows that are on the device already, all 13 layers, mean over
frames), and `music_ssl_fairseq.extract` as a whole, which does both at once; so the smaller of the
first two bounds the third. The reference is what fairseq's own script for features
(`dump_hubert_feature.py`) does: whole files, one after the other, in chunks of 100 s through
fairseq's HubertModel with the same weights, for a single layer.

The model is a HuBERT base (95M) with random weights, and the files are 16 kHz mono FLAC in the page
cache, listed as often as it takes. On a GPU the kernels are compiled first; that is not counted.
"""

import argparse
import logging
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from music_ssl_fairseq import audio
from music_ssl_fairseq.data.manifest import Manifest, write_manifest
from music_ssl_fairseq.extract.batches import Cut, QueuedWindow, read_loads
from music_ssl_fairseq.extract.row_file import Checksums
from music_ssl_fairseq.extract.run import Extraction
from music_ssl_fairseq.extract.store import MeanStore
from music_ssl_fairseq.runtime.machine import available_cpus
from music_ssl_fairseq.upstream.checkpoint import from_checkpoint
from music_ssl_fairseq.upstream.model import Upstream
from music_ssl_fairseq.upstream.windows import Window, Windowing
from tests import tiny
from tests.audio_files import write_tone

SAMPLE_RATE = 16_000
BASE = {
    "conv_feature_layers": "[(512,10,5)] + [(512,3,2)] * 4 + [(512,2,2)] * 2",
    "encoder_layers": 12,
    "encoder_embed_dim": 768,
    "encoder_ffn_embed_dim": 3072,
    "encoder_attention_heads": 12,
    "conv_pos_groups": 16,
}


def make_corpus(folder: Path, seconds: float, length: float) -> Manifest:
    """Write four files of `length` seconds, and list them again and again up to `seconds`."""
    length = min(length, seconds)
    names = [f"{i}.flac" for i in range(4)]
    for seed, name in enumerate(names):
        if not (folder / name).exists():
            write_tone(folder / name, length, seed=seed)
    samples = round(length * SAMPLE_RATE)
    count = max(1, round(seconds / length))
    file = folder / f"{count}.tsv"
    write_manifest(file, folder, [(names[i % 4], samples) for i in range(count)])
    return Manifest(file)


def make_models(sizes: dict[str, Any], device: torch.device, precision: str) -> tuple[Any, Any]:
    """Our upstream and fairseq's model, with the same random weights."""
    theirs = tiny.fairseq_hubert(500, **{**sizes, "final_dim": 256})
    settings = {**{k: theirs.cfg[k] for k in theirs.cfg}, "_name": "hubert"}
    checkpoint = {"model": theirs.state_dict(), "cfg": {"model": settings, "task": {}}}
    ours = Upstream(from_checkpoint(checkpoint, Path("base.pt")), device, precision)
    return ours, theirs.eval().to(device)


def reading_rate(extraction: Extraction, manifest: Manifest, workers: int) -> float:
    """Audio-seconds per second that worker processes decode and hand over.

    Where there are enough files, their start is not counted.
    """
    cut = Cut(manifest, extraction.upstream.grid, extraction.windowing)
    loads = list(cut.loads(range(len(manifest))))
    first = workers if len(loads) > 3 * workers else 0
    begin, samples = time.perf_counter(), 0
    for number, load in enumerate(read_loads(manifest, loads, workers, extraction.upstream.device)):
        if number == first > 0:
            begin, samples = time.perf_counter(), 0
        else:
            samples += len(load.waveform)
    return samples / SAMPLE_RATE / (time.perf_counter() - begin)


def rows(extraction: Extraction, count: int) -> Iterator[list[QueuedWindow]]:
    """Full batches of windows, on the device."""
    upstream = extraction.upstream
    window_samples = round(extraction.windowing.seconds * SAMPLE_RATE)
    frames = upstream.grid.num_frames(window_samples)
    length = upstream.grid.num_samples(frames)
    generator = torch.Generator().manual_seed(0)
    waveform = 0.1 * torch.randn(length, generator=generator).to(upstream.device)
    statistics = upstream.statistics(waveform.unsqueeze(0))
    window = Window(0, length, 0, frames, np.ones(frames, np.float32), frames)
    size = max(1, int(extraction.batch_seconds * SAMPLE_RATE // length))
    for _ in range(count):
        yield [QueuedWindow(0, window, waveform, statistics)] * size


def model_rate(extraction: Extraction, seconds: float) -> float:
    """Audio-seconds per second through the model alone, after two batches to warm up."""
    for _ in extraction._computed(rows(extraction, 3)):
        pass
    done, begin = 0.0, time.perf_counter()
    while time.perf_counter() - begin < seconds:
        for batch, _values in extraction._computed(rows(extraction, 4)):
            done += sum(len(row.waveform) for row in batch) / SAMPLE_RATE
    return done / (time.perf_counter() - begin)


def whole_rate(extraction: Extraction, manifest: Manifest, out: Path, workers: int) -> float:
    """Audio-seconds per second of the command, from the first file to the last row."""
    out.mkdir()
    cut = Cut(manifest, extraction.upstream.grid, extraction.windowing)
    sizes = len(extraction.layers), extraction.upstream.dimension
    store = MeanStore(out, cut, sizes, Checksums(out, len(manifest), ""))
    with tqdm(total=0, disable=True) as bar:
        outcome = extraction.run(manifest, store, workers, bar)
    store.finish()
    assert not outcome.left_out, outcome.left_out
    return outcome.seconds / outcome.wall


@torch.no_grad()
def reference_rate(model: Any, manifest: Manifest, device: torch.device, seconds: float) -> float:
    """fairseq's way, for about `seconds`."""
    chunk = 1_600_000
    done, begin = 0.0, 0.0
    for track in range(-1, len(manifest)):
        if track == 0:
            begin = time.perf_counter()
        elif track > 0 and time.perf_counter() - begin > seconds:
            break
        waveform = torch.from_numpy(audio.read(manifest.path(max(0, track)))).to(device)
        if track < 0:  # to warm up
            waveform = waveform[:SAMPLE_RATE]
        total = torch.zeros((), device=device)
        for part in waveform.unsqueeze(0).split(chunk, 1):
            features, _ = model.extract_features(
                part, padding_mask=None, output_layer=len(model.encoder.layers)
            )
            total = total + features.mean(1).sum()
        total.item()
        done += len(waveform) / SAMPLE_RATE if track >= 0 else 0
    return done / (time.perf_counter() - begin)


def get_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m tests.benchmarks.extract",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    gpu = torch.cuda.is_available()
    add = parser.add_argument
    add("--device", default="cuda" if gpu else "cpu", help="default: %(default)s")
    add("--minutes", type=float, help="of audio (default: 1200 on a GPU, 4 on a CPU)")
    add("--track-seconds", type=float, default=240, help="length of a file (default: %(default)s)")
    add("--batch-seconds", type=float, help="of extract (default: 480 on a GPU, 30 on a CPU)")
    add("--workers", type=int, help="that read (default: on a GPU all CPUs but one, else 1)")
    add("--precision", choices=["auto", "bf16", "fp32"], default="auto")
    add("--compile", choices=["on", "off"], default="on", help="on a GPU (default: %(default)s)")
    add("--seconds", type=float, default=10, help="for model and reference each (default: 10)")
    add("--small", action="store_true", help="a tiny model, to see that the command works")
    return parser


def run(
    device: str,
    minutes: float | None,
    track_seconds: float,
    batch_seconds: float | None,
    workers: int | None,
    precision: str,
    compile: str,
    seconds: float,
    small: bool,
) -> bool:
    """Print the table; whether the goal was reached."""
    logging.disable(logging.INFO)
    warnings.simplefilter("ignore")
    where = torch.device(device)
    gpu = where.type == "cuda"
    workers = workers or (min(16, max(1, available_cpus() - 1)) if gpu else 1)
    ours, theirs = make_models({} if small else BASE, where, precision)
    layers = list(range(ours.num_layers + 1))
    extraction = Extraction(
        ours,
        layers,
        None,
        Windowing(),
        batch_seconds or (480 if gpu else 30),
        gpu and compile == "on",
    )
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        manifest = make_corpus(folder, 60 * (minutes or (1200 if gpu else 4)), track_seconds)
        hours = manifest.num_samples.sum() / SAMPLE_RATE / 3600
        what = (
            torch.cuda.get_device_name(where) if gpu else f"{torch.get_num_threads()} CPU threads"
        )
        print(f"{what}, {ours.precision}, {workers} reading processes, {hours:.2f} h of audio\n")
        print("| what | audio-s/s |")
        print("|---|---|")
        reading = reading_rate(extraction, manifest, workers)
        print(f"| reading alone | {reading:.0f} |", flush=True)
        model = model_rate(extraction, seconds)
        print(f"| the model alone | {model:.1f} |", flush=True)
        whole = whole_rate(extraction, manifest, folder / "out", workers)
        print(f"| extract | {whole:.1f} |", flush=True)
        reference = reference_rate(theirs, manifest, where, seconds)
        print(f"| fairseq's way | {reference:.1f} |")
        print(f"\nratio {whole / reference:.1f}")
    goal = 15_000 if gpu else 2
    print(f"bound by {'the model' if model < reading else 'reading'}; goal {goal:,}")
    return whole >= goal


if __name__ == "__main__":
    sys.exit(0 if run(**vars(get_parser().parse_args())) else 1)
