"""How fast each front end is on one core, and how far its frames scatter.

    python -m tests.benchmarks.features --manifests manifests

Prints a Markdown table: dimension, frame rate, seconds of audio a second (CPU time of this process,
best of three passes over two minutes; start with OMP_NUM_THREADS=1 for one core), and the mean
squared distance of a frame from the mean frame over all tracks, 20 s from the middle of each: the
constants of `music_ssl_fairseq.features.concatenation.SCATTER`.
"""

import argparse
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--manifests", type=Path, default=Path("manifests"), metavar="DIR")
    manifest = Manifest(parser.parse_args().manifests / "train.tsv")
    waveforms = excerpts(manifest)
    joined = np.resize(np.concatenate(waveforms), _TIMED)
    print("| features | dimension | frames a second | audio-s/s on one core | scatter |")
    print("|---|---|---|---|---|")
    for name in [*FRONT_ENDS, "mfcc+chroma"]:
        front = front_end(name)
        print(
            f"| {name} | {front.dimension} | {front.frame_rate:g} | {speed(name, joined):.0f} "
            f"| {scatter(name, waveforms):.4g} |"
        )


if __name__ == "__main__":
    main()
