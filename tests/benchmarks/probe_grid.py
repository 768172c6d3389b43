"""Time one run of the whole grid of probes against one run a probe, on cached features.

    python -m tests.benchmarks.probe_grid
    python -m tests.benchmarks.probe_grid --clips 300 --singles 2 --threads 1
    python -m tests.benchmarks.probe_grid --window-seconds 30
    python -m tests.benchmarks.probe_grid --gpu

Clips of 30 s as in GTZAN (443 train, 197 valid, 290 test; fewer in proportion with --clips), ten
classes, and an encoder of the base size, whose features are made up and put into the cache: layers
differ in how much they say of the class. Both kinds of run are what a user starts,
`fairseq-hydra-train` in a process of its own, from the start of Python to the last checkpoint, with
the same settings; only `model.layers` and `model.learning_rates` differ. Of the single probes a few
are timed, spread over layers and learning rates, and their mean is multiplied by the size of the
grid: that figure is an extrapolation. Beside the seconds stands what all threads of a run took of
the processor, which other work on the machine changes less.
"""

import argparse
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import soundfile

from music_ssl_fairseq.probing.labels import ProbingSplit
from music_ssl_fairseq.probing.spec import ProbingSpec, read_spec, write_spec
from music_ssl_fairseq.probing.writer import Example, write_split

GTZAN = {"train": 443, "valid": 197, "test": 290}
CLASSES = tuple(f"class {i}" for i in range(10))
SECONDS, LAYERS, DIMENSION = 30, 13, 768
ROOT = Path(__file__).parents[2]


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--clips", type=int, default=930, help="in all splits (default: 930)")
    parser.add_argument("--singles", type=int, default=4, help="single probes timed (default: 4)")
    parser.add_argument("--threads", type=int, default=2, help="of torch, in both (default: 2)")
    parser.add_argument("--window-seconds", type=float, default=5.0, help="default: 5")
    parser.add_argument("--gpu", action="store_true", help="train on the GPU, both kinds of run")
    parser.add_argument("--keep", type=Path, help="work in this folder, and leave it")
    return parser.parse_args()


def make_checkpoint(file: Path) -> None:
    """An untrained encoder of the base size in depth and width; the rest is as small as can be.

    Its features come from the cache, so it is loaded, and never run.
    """
    import torch
    from omegaconf import OmegaConf

    from tests import tiny

    sizes = {
        "encoder_layers": LAYERS - 1,
        "encoder_embed_dim": DIMENSION,
        "encoder_ffn_embed_dim": 4,
        "conv_feature_layers": "[(8,10,5)] + [(8,3,2)] * 4 + [(8,2,2)] * 2",
        "conv_pos": 2,
        "conv_pos_groups": 16,
    }
    model = tiny.music_hubert(**sizes)
    fields = {**OmegaConf.to_container(model.cfg, enum_to_str=True), "_name": "music_hubert"}
    task = {"_name": "music_hubert_pretraining", "normalize": False}
    torch.save({"cfg": {"model": fields, "task": task}, "model": model.state_dict()}, file)


def make_task(folder: Path, clips: int) -> None:
    """Manifests and labels; all clips are names of one silent file."""
    audio = folder / "audio"
    audio.mkdir(parents=True)
    soundfile.write(audio / "silence.flac", np.zeros(SECONDS * 16_000, np.float32), 16_000)
    write_spec(folder, ProbingSpec("gtzan-genre", "multi-class", "accuracy", CLASSES))
    number = 0
    for split, count in GTZAN.items():
        examples = []
        for _ in range(round(count * clips / sum(GTZAN.values()))):
            name = f"{number}.flac"
            os.symlink("silence.flac", audio / name)
            # A segment of its own makes each clip another one for the cache.
            stop = SECONDS - number / 16_000
            label = CLASSES[number % len(CLASSES)]
            examples.append(Example(name, SECONDS * 16_000, (label,), (0.0, stop)))
            number += 1
        write_split(folder, split, audio, examples)


def fill_cache(folder: Path, checkpoint: Path, window_seconds: float) -> None:
    """Features with a trace of the class, strongest in the middle layers."""
    from music_ssl_fairseq.probing.features.cache import FeatureCache, clip_at
    from music_ssl_fairseq.probing.features.fill import WindowPlan, identity
    from music_ssl_fairseq.probing.features.source import open_source

    source = open_source(str(checkpoint))
    plan = WindowPlan(window_seconds, frames=False)
    store = FeatureCache(folder / "cache", identity(source, plan), 10**10, source.name)
    rng = np.random.default_rng(0)
    directions = rng.standard_normal((LAYERS, len(CLASSES), DIMENSION)).astype(np.float32)
    strength = np.exp(-np.square((np.arange(LAYERS) - 6) / 4))[:, None] * 0.12
    task = read_spec(folder)
    for split in GTZAN:
        labels = ProbingSplit(folder, split, task)
        for i, target in enumerate(labels.targets):
            clip = clip_at(labels.manifest.path(i), *labels.segments[i].tolist())
            windows = len(plan.windows(clip))
            noise = rng.standard_normal((1, LAYERS, DIMENSION)) + 0.5 * rng.standard_normal(
                (windows, LAYERS, DIMENSION)
            )
            vectors = noise * 0.3 + strength * directions[:, target]
            if clip.key not in store:
                store.add(clip.key, vectors.astype(np.float32))
    store.flush()


def timed(
    folder: Path, checkpoint: Path, run: str, args: argparse.Namespace, *overrides: str
) -> tuple[float, float]:
    """Seconds that a run takes as a command, and processor seconds."""
    command = [
        *(sys.executable, "-c", "from fairseq_cli.hydra_train import cli_main; cli_main()"),
        *("--config-dir", str(ROOT / "examples/probing"), "--config-name", "gtzan_genre"),
        *(f"model.upstream={checkpoint}", f"task.data={folder}", f"hydra.run.dir={folder / run}"),
        f"task.cache_dir={folder / 'cache'}",
        *(f"task.window_seconds={args.window_seconds}", *overrides),
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": str(args.threads)}
    if not args.gpu:
        command.append("common.cpu=true")
        environment["CUDA_VISIBLE_DEVICES"] = ""
    began, used = time.perf_counter(), processor_seconds()
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    if done.returncode:
        sys.exit(done.stdout[-2000:] + done.stderr[-4000:])
    return time.perf_counter() - began, processor_seconds() - used


def processor_seconds() -> float:
    """Of all programs that this one has started, and that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def heads_of(folder: Path, run: str) -> list[list[str]]:
    lines = (folder / run / "rows.csv").read_text().splitlines()[1:]
    return [line.split(",") for line in lines]


def main() -> None:
    args = parse()
    folder = (args.keep or Path(tempfile.mkdtemp())).resolve()
    checkpoint = folder / "encoder.pt"
    make_task(folder, args.clips)
    make_checkpoint(checkpoint)
    fill_cache(folder, checkpoint, args.window_seconds)
    grid, grid_used = timed(folder, checkpoint, "grid", args)
    heads = heads_of(folder, "grid")
    where = "GPU" if args.gpu else f"{args.threads} threads"
    epochs = np.array([int(head[4]) for head in heads])
    print(
        f"{args.clips} clips in windows of {args.window_seconds:g} s, {where}: {len(heads)} probes "
        f"in one run: {grid:.1f} s ({grid_used:.0f} s of the processor); "
        f"epochs of a probe: {epochs.min()} to {epochs.max()}, mean {epochs.mean():.1f}",
        flush=True,
    )
    singles: list[tuple[float, float]] = []
    chosen = np.linspace(0, len(heads) - 1, args.singles + 2)[1:-1].round().astype(int)
    for index in chosen:
        layer, rate, score, _, trained, _ = heads[index]
        seconds, used = timed(
            *(folder, checkpoint, f"single_{index}", args),
            *(f"model.layers='{layer}'", f"model.learning_rates=[{rate}]"),
        )
        alone = heads_of(folder, f"single_{index}")[0]
        print(
            f"layer {layer}, learning rate {rate}, alone: {seconds:.1f} s "
            f"({used:.1f} s of the processor), {alone[4]} epochs, "
            f"valid {float(alone[2]):.4f} (in the grid: {trained} epochs, {float(score):.4f})",
            flush=True,
        )
        singles.append((seconds, used))
    total, total_used = np.mean(singles, axis=0) * len(heads)
    print(
        f"{len(heads)} runs of one probe, extrapolated from {len(singles)}: {total:.0f} s "
        f"({total_used:.0f} s of the processor); ratio {total / grid:.1f} "
        f"({total_used / grid_used:.1f})"
    )
    if not args.keep:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
