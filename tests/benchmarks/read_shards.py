"""Crops per second from single files, from tar shards, and from shards on a server.

    python -m tests.benchmarks.read_shards [--music DIR]

5 s crops in random order, one process, one thread, files in the page cache. The server is on
loopback and answers at once: of another one, its delay for each request comes on top.
"""

import argparse
import os
import tempfile
import time
from pathlib import Path

import numpy as np

SAMPLE_RATE = 16_000
ROUNDS = 9


def rate(manifest, seconds: float) -> float:
    """Read random crops of tracks of a manifest for some seconds; return crops per second."""
    from music_ssl_fairseq import audio

    rng, length = np.random.default_rng(0), 5 * SAMPLE_RATE
    number, began = 0, time.perf_counter()
    while time.perf_counter() - began < seconds:
        track = int(rng.integers(len(manifest)))
        start = int(rng.integers(manifest.num_samples[track] - length))
        audio.read(manifest.path(track), start, length)
        number += 1
    return number / (time.perf_counter() - began)


def main() -> None:
    from manifests_tools import pretrain
    from music_ssl_fairseq.data.manifest import Manifest
    from tests.audio_files import write_tone
    from tests.file_server import serve
    from tests.options import with_defaults

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--music", help="of tracks longer than 5 s (default: 20 tones of 5 minutes)"
    )
    parser.add_argument("--seconds", type=float, default=10, help="for each way (default: 10)")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        music = args.music or str(folder / "music")
        for i in range(0 if args.music else 20):
            write_tone(folder / "music" / str(i % 2) / f"{i}.flac", 300, seed=i)
        run = with_defaults(pretrain)
        options = {"min_seconds": 6.0, "valid_share": 0.1}
        run(music, str(folder / "single"), convert=str(folder / "copies"), **options)
        run(music, str(folder / "sharded"), shards=str(folder / "tars"), **options)
        with serve(folder / "tars") as server:
            text = (folder / "sharded" / "train.tsv").read_text()
            (folder / "served.tsv").write_text(text.replace(str(folder / "tars"), server.url))
            files = {
                "single FLAC files": folder / "single" / "train.tsv",
                "shards": folder / "sharded" / "train.tsv",
                "shards over HTTP": folder / "served.tsv",
            }
            manifests = {name: Manifest(file) for name, file in files.items()}
            rates: dict[str, list[float]] = {name: [] for name in files}
            for _ in range(ROUNDS):  # in turns, because the machine has other work
                for name, manifest in manifests.items():
                    rates[name].append(rate(manifest, args.seconds / ROUNDS))
            for name, found in rates.items():
                print(f"{name}: {np.median(found):.0f} crops per second")
            crops = sum(found * args.seconds / ROUNDS for found in rates["shards over HTTP"])
            asked = [int(b) - int(a) + 1 for a, b in map(_bounds, server.requests)]
            print(
                f"{len(asked) / crops:.1f} requests and {sum(asked) / crops / 1e3:.0f} kB per crop"
            )
            size = sum(os.path.getsize(path) for path in (folder / "tars").glob("*.tar"))
            samples = sum(
                Manifest(folder / "sharded" / f"{s}.tsv").num_samples.sum()
                for s in ("train", "valid")
            )
            print(f"{size / (samples / SAMPLE_RATE) / 1e3:.1f} kB per second of music")


def _bounds(request: tuple[str, str]) -> list[str]:
    return request[1].removeprefix("bytes=").split("-")


if __name__ == "__main__":
    main()
