"""Seconds and memory of a start per manifest row, with labels shared between workers.

    python -m tests.benchmarks.startup [--rows 10000,100000,1000000]

Each row is a track of 240 s, and has labels at 100 Hz in the labeler's memory map. The label files
are sparse, so that a million rows need no disk: they read as zeros. A digest of the
text of labels is taken at the start too; its time is that of bytes in memory. Each number of rows
runs in a process of its own. Workers are forked after the start, as data loaders fork them. Each
touches the labels of 2,000 crops. What they cost is the fall of the system's available memory.
"""

import argparse
import json
import multiprocessing
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

TRACK_SAMPLES = 240 * 16_000
LABELS = 1 + (TRACK_SAMPLES - 400) // 160
WORKERS = 8


def write(folder: Path, rows: int) -> None:
    with (folder / "train.tsv").open("w") as file:
        file.write("/data/music\n")
        for row in range(rows):
            file.write(
                f"artist {row // 100:06d}/album {row // 10:07d}/{row:08d}.flac\t{TRACK_SAMPLES}\n"
            )
    with (folder / "train.km").open("wb") as file:
        file.truncate(rows * LABELS * 4)  # of k = 500 with spaces
    (folder / "dict.km.txt").write_text("".join(f"{unit} 1\n" for unit in range(500)))
    (folder / "metadata.json").write_text('{"label_rate": 100, "k": 500}')
    np.save(folder / "train.offsets.npy", np.arange(rows + 1, dtype=np.int64) * LABELS)
    units = np.lib.format.open_memmap(folder / "train.units.npy", "w+", np.uint16, (rows * LABELS,))
    del units


def resident() -> float:
    """Return this process's memory in MB."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 1e6


def available() -> float:
    """Return the system's available memory in MB."""
    lines = Path("/proc/meminfo").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable")) / 1e3


def measure(folder: Path) -> dict[str, float]:
    """Start as a training does, and return what each part took."""
    from omegaconf import OmegaConf

    from music_ssl_fairseq.data.crop_config import CropConfig
    from music_ssl_fairseq.data.label_check import check_labels
    from music_ssl_fairseq.data.label_store import LabelStore
    from music_ssl_fairseq.data.manifest import Manifest
    from music_ssl_fairseq.data.pretraining_dataset import PretrainingDataset
    from music_ssl_fairseq.data.run_identity import digest_of, manifest_identity
    from music_ssl_fairseq.data.units import LabelSet, UnitDictionary
    from music_ssl_fairseq.frames import DEFAULT_CONV_LAYERS

    found: dict[str, float] = {}
    memory, began = resident(), time.perf_counter()

    def note(name: str) -> None:
        nonlocal began
        found[name] = time.perf_counter() - began
        began = time.perf_counter()

    manifest = Manifest(folder / "train.tsv")
    note("index")
    manifest_identity(manifest)
    note("identity")
    store, units = LabelStore(folder / "train.km"), UnitDictionary(folder / "dict.km.txt")
    check_labels(manifest, store, units, 100.0)
    note("labels")
    labels = [LabelSet(store, units, 100.0)]
    of_model = {"mask_prob": 0.8, "mask_length": 10, "conv_feature_layers": DEFAULT_CONV_LAYERS}
    cfg = OmegaConf.structured(CropConfig(seed=0, **of_model))
    data = PretrainingDataset(manifest, cfg, training=True, labels=labels, min_mask_spans=2)
    note("plan")
    order = data.ordered_indices()
    note("order of an epoch")
    data.batch_by_size(order, max_sentences=100)
    note("batches of an epoch")
    found["memory"] = resident() - memory
    before = available()
    ready, done = multiprocessing.Barrier(WORKERS + 1), multiprocessing.Barrier(WORKERS + 1)

    def work(seed: int) -> None:
        rng = np.random.default_rng(seed)
        for _ in range(2000):
            track, start, _ = data._plan.crop(int(rng.integers(len(data))), 1)
            manifest.path(track)
            labels[0].classes(track, start, 249, data._grid)
        ready.wait()
        done.wait()

    context = multiprocessing.get_context("fork")
    workers = [context.Process(target=work, args=(i,), daemon=True) for i in range(WORKERS)]
    for worker in workers:
        worker.start()
    ready.wait()
    found["memory of a worker"] = (before - available()) / WORKERS
    done.wait()
    text = folder / "train.km"
    with text.open("rb") as file:
        block = file.read(1 << 20)
    began = time.process_time()
    digest_of(block for _ in range(1000))
    found["digest of 1 GB of labels"] = (time.process_time() - began) * 1e9 / (1000 << 20)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", default="10000,100000,1000000", help="(default: %(default)s)")
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.folder:
        print(json.dumps(measure(Path(args.folder))))
        return
    for rows in map(int, args.rows.split(",")):
        with tempfile.TemporaryDirectory() as name:
            write(Path(name), rows)
            command = [sys.executable, "-m", "tests.benchmarks.startup", "--folder", name]
            output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
        found = json.loads(output.splitlines()[-1])
        print(f"{rows} rows of {rows * LABELS / 1e6:.0f} million labels ({os.cpu_count()} CPUs):")
        for name, value in found.items():
            print(f"  {name}: {value:.3f} {'MB' if 'memory' in name else 's'}")


if __name__ == "__main__":
    main()
