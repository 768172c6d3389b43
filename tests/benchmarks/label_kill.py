"""Labelling that is killed again and again ends with the files of a run that was left alone.

    python -m tests.benchmarks.label_kill
    python -m tests.benchmarks.label_kill --kills 20 --shards 3 --manifests manifests

Runs the labeler once undisturbed, and then again, killing it (SIGKILL, by turns the one process and
all of its group) after a random part of the time that the first run took; each next run goes on.
With shards, each kill hits another one of them. A run that has got to its end in spite of the kills
is compared, byte by byte, and removed, and the kills go on with a new one; the last is left to
finish. Prints how far each killed run had come.
"""

import argparse
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np


def make_corpus(folder: Path, tracks: int, seconds: float) -> Path:
    """Manifests of tones made on the spot."""
    from music_ssl_fairseq.data.manifest import write_manifest
    from tests.audio_files import write_tone

    for split, number in (("train", tracks), ("valid", max(1, tracks // 5))):
        lines = []
        for i in range(number):
            name = f"{split}{i}.flac"
            write_tone(folder / "music" / name, seconds, seed=i)
            lines.append((name, round(seconds * 16_000)))
        write_manifest(folder / "manifests" / f"{split}.tsv", folder / "music", lines)
    return folder / "manifests"


def command(manifests: Path, labels: Path, k: int, max_frames: int, shard: str | None) -> list[str]:
    """The labeler's command line; `shard` as in `0/3`."""
    line = [
        *(sys.executable, "-m", "music_ssl_fairseq.label", "--k", str(k)),
        *("--manifests", str(manifests), "--labels", str(labels)),
        *("--max-frames", str(max_frames), "--workers", "2"),
    ]
    if shard:
        index, number = shard.split("/")
        line += ["--shard", index, "--num-shards", number]
    return line


def run(
    line: list[str], kill_after: float | None = None, whole_group: bool = False
) -> float | None:
    """Run to the end, or for so many seconds; the seconds it took, None if it was killed."""
    begin = time.monotonic()
    process = subprocess.Popen(
        line, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    try:
        _, errors = process.communicate(timeout=kill_after)
    except subprocess.TimeoutExpired:
        if whole_group:
            os.killpg(process.pid, signal.SIGKILL)
        else:
            process.kill()
        process.communicate()
        return None
    if process.returncode:
        raise SystemExit(f"{' '.join(line)} failed:\n{errors[-2000:]}")
    return time.monotonic() - begin


def progress(labels: Path) -> str:
    """Describe in few words what the run has left so far."""
    blocks = len(list(labels.glob(".work-*/*.npz")))
    finished = sorted(path.name for path in labels.glob("*.*") if path.suffix in (".km", ".npy"))
    return f"{blocks} blocks, {len(finished)} of 7 outputs"


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def trial(
    manifests: Path, folder: Path, kills: int, shards: int, k: int, max_frames: int, seed: int
) -> bool:
    """Whether all files are equal in the end, each time that there was one."""
    rng = np.random.default_rng(seed)
    calm, torn = folder / "calm", folder / "torn"
    whole = run(command(manifests, calm, k, max_frames, None))
    assert whole is not None
    print(f"undisturbed: {whole:.1f} s")
    names = [f"{i}/{shards}" for i in range(shards)] if shards > 1 else [None]
    done = differing = number = 0
    while done < kills:
        after = float(rng.uniform(0.1, 0.6)) * whole
        line = command(manifests, torn, k, max_frames, names[number % len(names)])
        number += 1
        if run(line, after, whole_group=bool(number % 2)) is None:
            done += 1
            print(f"{done:3d}: killed after {after:.1f} s: {progress(torn)}", flush=True)
        if (torn / "valid.km").exists() and not list(torn.glob(".work-*")):
            differing += compare(calm, torn)
            shutil.rmtree(torn)
    for name in names:
        run(command(manifests, torn, k, max_frames, name))
    differing += compare(calm, torn)
    return not differing


def compare(calm: Path, torn: Path) -> int:
    """Print which files differ; how many."""
    expected, found = contents(calm), contents(torn)
    differing = [name for name in expected if expected[name] != found.get(name)]
    differing += sorted(found.keys() - expected.keys())
    print(f"     finished: files that differ: {', '.join(differing) or 'none'} of {len(expected)}")
    return len(differing)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    add = parser.add_argument
    add("--kills", type=int, default=20, help="default: %(default)s")
    add("--shards", type=int, default=1, help="default: %(default)s")
    add("--manifests", type=Path, help="default: twelve tracks of five minutes, made on the spot")
    add("--k", type=int, default=200, help="default: %(default)s")
    add("--max-frames", type=int, default=100_000, help="default: %(default)s")
    add("--seed", type=int, default=0, help="of the moments (default: %(default)s)")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        manifests = arguments.manifests or make_corpus(folder, tracks=12, seconds=300)
        equal = trial(
            manifests,
            folder,
            arguments.kills,
            arguments.shards,
            arguments.k,
            arguments.max_frames,
            arguments.seed,
        )
    return 0 if equal else 1


if __name__ == "__main__":
    sys.exit(main())
