"""Peak memory of labelling a corpus of a thousand hours, in simulation.

    python -m tests.benchmarks.label_memory --manifests manifests --hours 1000 --memory 1G
    python -m tests.benchmarks.label_memory --manifests manifests --hours 20 --real

The manifest repeats the tracks of a real one until it has so many hours. All of the labeler runs on
it: sampling, K-means, assignment, joining, all files whole. Two cores would decode for an hour or
more, so the time per chunk of audio is simulated, but not the memory: of each chunk only 25 ms are
decoded, and its features are cut from a table of a minute of MFCC, as large as real ones. `--real`
decodes and computes everything.

Memory is the sum over all processes of the labeler of their proportional share of physical memory
(Pss), every 0.2 s, which counts a page that several share once.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from music_ssl_fairseq import features
from music_ssl_fairseq.features.mfcc import Mfcc
from music_ssl_fairseq.label.nearest_centroid import Labeler
from music_ssl_fairseq.label.sample import Reader

# A worker imports this module for the classes below, and then knows these features too.
features.FRONT_ENDS["stub"] = ("stub", "Stub", {})
sys.modules[f"{features.__name__}.stub"] = sys.modules[__name__]


class Stub(Mfcc):
    """MFCC of other audio than what is asked for."""

    def __init__(self) -> None:
        super().__init__()
        noise = np.random.default_rng(0).normal(0, 0.1, 16_000 * 61).astype(np.float32)
        self._table = Mfcc().features(noise)

    def samples_for(self, num_samples: int, first: int, last: int) -> tuple[int, int]:
        """25 ms, wherever they are."""
        return first * self.grid.hop, first * self.grid.hop + self.grid.window

    def features_of(self, chunks: Sequence) -> list[np.ndarray]:
        """A part of the table, as long as it has to be."""
        # A copy with noise of its own, as K-means of equal frames would be no K-means.
        rng = np.random.default_rng(chunks[0].first)
        table = self._table + rng.normal(0, 1, self._table.shape[1]).astype(np.float32)
        return [table[: chunk.last - chunk.first] for chunk in chunks]


class StubLabeler(Labeler):
    """Its class is what makes workers import this module."""


class StubReader(Reader):
    """As above."""


def labelled(arguments: list[str]) -> int:
    """The labeler with these features; the exit status."""
    from music_ssl_fairseq.label import assign_stage, fit_stage
    from music_ssl_fairseq.label.__main__ import main as label

    vars(fit_stage).update(Reader=StubReader)
    vars(assign_stage).update(Labeler=StubLabeler)
    return label(arguments)


def repeat_manifest(source: Path, target: Path, hours: float) -> float:
    """Write the tracks of a manifest again and again; the hours there are then."""
    root, *lines = source.read_text().splitlines()
    samples = [int(line.rpartition("\t")[2]) for line in lines]
    wanted, number, total = hours * 3600 * 16_000, 0, 0
    target.parent.mkdir(parents=True)
    with target.open("w") as handle:
        handle.write(root + "\n")
        while total < wanted:
            handle.write(lines[number % len(lines)] + "\n")
            total += samples[number % len(lines)]
            number += 1
    return total / 3600 / 16_000


def proportional_memory(session: int) -> int:
    """Bytes of all processes of a session."""
    total = 0
    for process in Path("/proc").iterdir():
        if not process.name.isdigit():
            continue
        try:
            fields = (process / "stat").read_text().rpartition(")")[2].split()
            if int(fields[3]) != session:
                continue
            for line in (process / "smaps_rollup").read_text().splitlines():
                if line.startswith("Pss:"):
                    total += int(line.split()[1]) << 10
        except OSError:  # it has ended meanwhile
            continue
    return total


def peak_memory(line: list[str]) -> tuple[int, float]:
    """Run to the end: peak in bytes, and seconds."""
    begin = time.monotonic()
    process = subprocess.Popen(line, start_new_session=True)
    peak = 0
    while process.poll() is None:
        peak = max(peak, proportional_memory(process.pid))
        time.sleep(0.2)
    if process.returncode:
        raise SystemExit(f"the labeler failed: {' '.join(line)}")
    return peak, time.monotonic() - begin


def main() -> int:
    from music_ssl_fairseq.label.memory import parse_size, show_size
    from music_ssl_fairseq.runtime.machine import available_cpus

    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    add = parser.add_argument
    add("--manifests", type=Path, default=Path("manifests"), help="default: %(default)s")
    add("--hours", type=float, default=1000.0, help="default: %(default)s")
    add("--memory", default="1G", help="the bound (default: %(default)s)")
    add("--k", type=int, default=500, help="default: %(default)s")
    add("--minibatch", help="frames to hold (default: all of the sample)")
    add("--workers", type=int, default=available_cpus(), help="default: %(default)s")
    add("--real", action="store_true", help="decode and compute everything")
    arguments = parser.parse_args()
    folder = Path(tempfile.mkdtemp())
    try:
        hours = repeat_manifest(
            arguments.manifests / "train.tsv", folder / "manifests" / "train.tsv", arguments.hours
        )
        options = [
            *("--manifests", str(folder / "manifests"), "--labels", str(folder / "labels")),
            *("--k", str(arguments.k), "--memory", arguments.memory),
            *("--workers", str(arguments.workers)),
            *(("--minibatch", arguments.minibatch) if arguments.minibatch else ()),
        ]
        program = "from tests.benchmarks.label_memory import labelled; import sys; "
        stub = [sys.executable, "-c", program + "sys.exit(labelled(sys.argv[1:]))"]
        real = [sys.executable, "-m", "music_ssl_fairseq.label"]
        line = [*real, *options] if arguments.real else [*stub, *options, "--features", "stub"]
        peak, seconds = peak_memory(line)
        written = sum(file.stat().st_size for file in (folder / "labels").iterdir())
    finally:
        shutil.rmtree(folder)
    bound = parse_size(arguments.memory)
    print(
        f"{hours:.0f} h in {seconds:.0f} s ({hours * 3600 / seconds:.0f} audio-s/s), "
        f"{show_size(written)} of labels: peak {show_size(peak)}, "
        f"{100 * peak / bound:.0f} % of the bound {show_size(bound)}"
    )
    return int(peak > bound)


if __name__ == "__main__":
    os.environ.setdefault("PYTHONPATH", str(Path(__file__).parents[2]))
    sys.exit(main())
