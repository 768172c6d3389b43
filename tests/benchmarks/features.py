"""How fast each front end is, and how far its frames scatter.

    OMP_NUM_THREADS=1 python -m tests.benchmarks.features --manifests manifests
    python -m tests.benchmarks.features --manifests manifests --deep cuda

The first prints a Markdown table: dimension, frame rate, seconds of audio a second (CPU time of
this process, best of three passes over two minutes), and the mean squared distance of a frame from
the mean frame over all tracks, 20 s from the middle of each: the constants of
`music_ssl_fairseq.features.framewise.SCATTER`.

The second prints the speed of deep features of a device: layer 6 of a base-sized model with random
weights, waveforms in memory, by the clock, without the first pass.
"""

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np

from music_ssl_fairseq import audio
from music_ssl_fairseq.data.manifest import Manifest
from music_ssl_fairseq.features import FRONT_ENDS, front_end
from music_ssl_fairseq.frames import SAMPLE_RATE

_EXCERPT = 20 * SAMPLE_RATE
_TIMED = 120 * SAMPLE_RATE


def excerpts(manifest: Manifest) -> list[np.ndarray]:
    """The middle of each track."""
    middles = [max(0, (int(n) - _EXCERPT) // 2) for n in manifest.num_samples]
    return [audio.read(manifest.path(i), start, _EXCERPT) for i, start in enumerate(middles)]


def scatter(name: str, waveforms: list[np.ndarray]) -> float:
    """Mean squared distance from the mean, over all frames."""
    frames = np.concatenate([front_end(name).features(waveform) for waveform in waveforms])
    return float(frames.var(axis=0, dtype=np.float64).sum())


def speed(name: str, waveform: np.ndarray) -> float:
    """Seconds of audio a second."""
    front = front_end(name)
    front.features(waveform[:SAMPLE_RATE])  # tables
    times = []
    for _ in range(3):
        began = time.process_time()
        front.features(waveform)
        times.append(time.process_time() - began)
    return len(waveform) / SAMPLE_RATE / min(times)


def deep_speed(device: str, waveform: np.ndarray, chunks: int) -> float:
    """Seconds of audio a second through six layers of a base-sized model."""
    import torch

    from music_ssl_fairseq.features.deep import Deep
    from music_ssl_fairseq.features.framewise import Chunk
    from music_ssl_fairseq.models.music_hubert import MusicHubertConfig, MusicHubertModel
    from tests import checkpoints, tiny

    with tempfile.TemporaryDirectory() as folder:
        model = MusicHubertModel(tiny.config(MusicHubertConfig), 504)
        path = checkpoints.write(Path(folder) / "base.pt", "music_hubert", model)
        front = Deep(str(path), 6, device)
    length = len(waveform)
    whole = [Chunk(waveform, 0, length, 0, front.grid.num_frames(length))] * chunks
    times = []
    for _ in range(4):
        began = time.perf_counter()
        found = front.tensors_of(whole)
        if device != "cpu":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - began)
        del found
    return chunks * length / SAMPLE_RATE / min(times[1:])


def table(waveforms: list[np.ndarray]) -> None:
    """Print what there is to say about the front ends that need no model."""
    joined = np.resize(np.concatenate(waveforms), _TIMED)
    print("| features | dimension | frames a second | audio-s/s on one core | scatter |")
    print("|---|---|---|---|---|")
    for name in [*FRONT_ENDS, "mfcc+chroma"]:
        front = front_end(name)
        print(
            f"| {name} | {front.dimension} | {front.grid.rate:g} | {speed(name, joined):.0f} "
            f"| {scatter(name, waveforms):.4g} |"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--manifests", type=Path, default=Path("manifests"), metavar="DIR")
    parser.add_argument("--deep", metavar="DEVICE", help="cpu or cuda: deep features instead")
    arguments = parser.parse_args()
    waveforms = excerpts(Manifest(arguments.manifests / "train.tsv"))
    if not arguments.deep:
        table(waveforms)
        return
    on_cpu = arguments.deep == "cpu"
    track = np.resize(np.concatenate(waveforms), (60 if on_cpu else 240) * SAMPLE_RATE)
    rate = deep_speed(arguments.deep, track, 1 if on_cpu else 16)
    print(f"deep, layer 6 of a base model, {arguments.deep}: {rate:.0f} audio-s/s")


if __name__ == "__main__":
    main()
