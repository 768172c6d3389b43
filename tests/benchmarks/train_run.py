"""Time whole runs of fairseq-hydra-train from FLAC files on disk: ours and stock fairseq's.

    python -m tests.benchmarks.train_run                        # both families, one GPU
    python -m tests.benchmarks.train_run --gpus 2 --no-stock    # how it scales
    python -m tests.benchmarks.train_run --hours 1,4,100 --save-every 100 --no-stock

Each run is the command as a user types it, with the configs of `examples/` (fairseq's: its own
tasks and models with the values of its published configs), in a process of its own: data loading,
logging and all. What counts is the wall time from the end of the warm-up, in which kernels are
compiled, to the last update, as the run's own log has it. The ceiling is that of `train_step`, of
all GPUs that are used. The corpus is made on the spot: tracks of 30 s at 16 kHz, with random units
at 100 Hz. A small corpus (`--hours`) has short epochs, so its rate beside a large one's shows what
epoch ends cost; `--save-every` adds checkpoints of ours. On a CPU the models are tiny, and the
figures only show that the command works.
"""

import argparse
import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from music_ssl_fairseq.runtime.machine import available_cpus
from tests import tiny
from tests.audio_files import write_tone
from tests.benchmarks.time_to_quality_report import entries, seconds_of
from tests.benchmarks.train_step import matrix_rate, operations

ROOT = Path(__file__).parents[2]
GPU = torch.cuda.is_available()
TRACK_SECONDS = 30
FILES = 16  # different ones; the manifest lists them again and again
STOCK_TASK = {"music_hubert": "hubert_pretraining", "music2vec": "audio_pretraining"}
STOCK_MODEL = {"music_hubert": "hubert", "music2vec": "data2vec_audio"}


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", choices=["music_hubert", "music2vec"], action="append")
    parser.add_argument("--k", type=int, default=500, help="units (default: %(default)s)")
    parser.add_argument("--gpus", type=int, default=1, help="processes (default: %(default)s)")
    parser.add_argument("--crops", type=int, default=100 if GPU else 4, help="a GPU and update")
    parser.add_argument("--seconds", type=float, default=5.0 if GPU else 1.0, help="of a crop")
    parser.add_argument("--updates", type=int, default=300 if GPU else 12, help="of our run")
    parser.add_argument("--stock-updates", type=int, default=60 if GPU else 6, help="of fairseq's")
    parser.add_argument("--workers", type=int, help="a GPU (default: up to 10)")
    parser.add_argument("--hours", default="50" if GPU else "0.3", help="corpora, per GPU")
    parser.add_argument("--save-every", type=int, help="updates; default: no checkpoints")
    parser.add_argument("--no-stock", action="store_true", help="time ours alone")
    parser.add_argument("--ddp-backend", default="legacy_ddp", help="of ours, with --gpus > 1")
    args = parser.parse_args()
    args.workers = args.workers or min(10, available_cpus() // args.gpus)
    return args


def make_corpus(folder: Path, tracks: int, k: int) -> None:
    """Files, train.tsv, valid.tsv and labels."""
    for i in range(min(FILES, tracks)):
        write_tone(folder / f"{i}.flac", TRACK_SECONDS, seed=i)
    rng = np.random.default_rng(0)
    frames = 1 + (TRACK_SECONDS * 16000 - 400) // 160
    lines = [" ".join(map(str, rng.integers(0, k, frames))) + "\n" for _ in range(FILES)]
    for split, number in (("train", tracks), ("valid", 4)):
        rows = [f"{i % min(FILES, tracks)}.flac\t{TRACK_SECONDS * 16000}\n" for i in range(number)]
        (folder / f"{split}.tsv").write_text(f"{folder}\n" + "".join(rows))
        with (folder / f"{split}.km").open("w") as file:
            file.writelines(lines[i % FILES] for i in range(number))
    (folder / "dict.km.txt").write_text("".join(f"{unit} 1\n" for unit in range(k)))
    (folder / "metadata.json").write_text(json.dumps({"label_rate": 100, "k": k}))


def common(args: argparse.Namespace, run: Path, updates: int) -> list[str]:
    """What both get."""
    return [
        f"hydra.run.dir={run}",
        f"dataset.batch_size={args.crops}",
        f"dataset.num_workers={args.workers}",
        "dataset.required_batch_size_multiple=1",
        "optimization.update_freq=[1]",
        f"optimization.max_update={updates}",
        "common.log_interval=1" if updates < 40 else "common.log_interval=10",
        "checkpoint.no_save=true",
        "dataset.disable_validation=true",
    ]


def our_command(name: str, args: argparse.Namespace, folder: Path, run: Path) -> list[str]:
    """fairseq-hydra-train with examples/<name>."""
    overrides = [
        f"task.data={folder}",
        f"task.crop_seconds={args.seconds}",
        "task.min_seconds=1",
        "common.tensorboard_logdir=null",
        "lr_scheduler.warmup_updates=1000" if name == "music_hubert" else "common.seed=1",
        f"distributed_training.distributed_world_size={args.gpus}",
        f"distributed_training.ddp_backend={args.ddp_backend}",
    ]
    if args.save_every:
        overrides += [
            "checkpoint.no_save=false",
            f"checkpoint.save_interval_updates={args.save_every}",
        ]
    if name == "music_hubert":
        overrides.append(f"task.label_dir={folder}")
    if not GPU:
        overrides += [f"model.{key}='{value}'" for key, value in tiny.SIZES.items()]
        overrides += ["model.average_top_k_layers=2"] if name == "music2vec" else []
    config = ["--config-dir", str(ROOT / "examples" / name)]
    return [*config, *common(args, run, args.updates), *overrides]


def stock_config(name: str, args: argparse.Namespace, folder: Path) -> dict:
    """fairseq's own task, criterion and model, as its published base configs set them."""
    samples = round(args.seconds * 16000)
    task = {"_name": STOCK_TASK[name], "data": str(folder), "sample_rate": 16000}
    task |= {"max_sample_size": samples, "min_sample_size": 16000}
    task |= {"normalize": name == "music2vec"}
    model: dict = {"_name": STOCK_MODEL[name], "encoder_layerdrop": 0.05, "feature_grad_mult": 0.1}
    model |= {"dropout_input": 0.1, "dropout_features": 0.1, "dropout": 0.1}
    if name == "music_hubert":
        task |= {"label_dir": str(folder), "labels": ["km"], "label_rate": 100}
        task |= {"pad_audio": False, "random_crop": True}
        model |= {"label_rate": "${task.label_rate}", "final_dim": 256, "skip_masked": False}
        model |= {"mask_prob": 0.8, "extractor_mode": "default", "untie_final_proj": True}
        criterion: dict = {"_name": "hubert", "pred_masked_weight": 1.0, "pred_nomask_weight": 0.0}
        criterion |= {"loss_weights": [10]}
    else:
        model |= {"mask_prob": 0.65, "extractor_mode": "layer_norm", "average_top_k_layers": 8}
        model |= {"conv_pos": 95, "pos_conv_depth": 5, "feature_grad_mult": 1.0, "loss_beta": 0}
        model |= {"layer_norm_target_layer": False, "instance_norm_target_layer": True}
        criterion = {"_name": "model", "log_keys": ["ema_decay", "target_var", "pred_var"]}
    if not GPU:
        model |= tiny.SIZES | ({"average_top_k_layers": 2} if name == "music2vec" else {})
    common: dict = {"fp16": GPU, "seed": 1, "log_format": "json", "fp16_init_scale": 8}
    if name == "music2vec":
        # Not one of fairseq's own models, but in its examples, whose other tasks need torchvision.
        plugin = folder / "stock_data2vec"
        plugin.mkdir(exist_ok=True)
        module = "fairseq.examples.data2vec.models.data2vec_audio"
        (plugin / "__init__.py").write_text(f"import {module}\n")
        common["user_dir"] = str(plugin)
    return {
        "common": common,
        "task": task,
        "criterion": criterion,
        "model": model,
        "dataset": {"skip_invalid_size_inputs_valid_test": True},
        "optimization": {"lr": [1e-5], "clip_norm": 10.0},
        "optimizer": {"_name": "adam", "adam_betas": "(0.9,0.98)", "adam_eps": 1e-6},
        "lr_scheduler": {"_name": "fixed"},
        "distributed_training": {"distributed_world_size": 1},
    }


def stock_command(name: str, args: argparse.Namespace, folder: Path, run: Path) -> list[str]:
    """fairseq-hydra-train with fairseq's own classes."""
    import yaml

    config = folder / f"stock_{name}.yaml"
    text = yaml.safe_dump(stock_config(name, args, folder))
    config.write_text("# @package _group_\n" + text)
    options = ["--config-dir", str(folder), "--config-name", config.stem]
    return [*options, *common(args, run, args.stock_updates)]


class Figures(NamedTuple):
    """Of a run: seconds an update after the warm-up, how many updates that is over, their mean
    number of crops (an epoch's last update has fewer), seconds from the start of the first epoch to
    the end of the warm-up, and the peak of memory in GB."""

    seconds: float
    updates: int
    crops: float
    start: float
    memory: float


def measure(command: list[str], run: Path, warm_up: int) -> Figures:
    """Run a training command, of which so many updates are the warm-up."""
    result = subprocess.run(
        [sys.executable, "-m", "fairseq_cli.hydra_train", *command],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    log = run / "hydra_train.log"
    text = log.read_text() if result.returncode == 0 and log.exists() else ""
    found = [entry for entry in entries(text, 0.0) if entry["kind"] == "train_inner"]
    free = [entry.get("gb_free", float("nan")) for entry in found]
    # Each a mean since the entry before.
    sizes = [entry["bsz"] for entry in found if entry["num_updates"] > warm_up]
    timed = [
        (int(entry["num_updates"]), entry["seconds"])
        for entry in found
        if entry["num_updates"] >= warm_up
    ]
    if len(timed) < 2:
        print(result.stdout[-2000:], result.stderr[-4000:], sep="\n", file=sys.stderr)
        raise SystemExit(f"error: no figures in {log}")
    (first, began), (last, ended) = timed[0], timed[-1]
    start = re.search(r"\[(.*?)\].*begin training epoch", text)
    assert start
    seconds = (ended - began) / (last - first)
    memory = torch.cuda.get_device_properties(0).total_memory - min(free) * 2**30 if GPU else 0.0
    mean = sum(sizes) / len(sizes)
    return Figures(seconds, last - first, mean, began - seconds_of(start[1]), memory / 1e9)


def main() -> None:
    args = parse()
    device = torch.cuda.get_device_name() if GPU else "CPU (tiny models)"
    print(f"{args.gpus} x {device}, torch {torch.__version__}, {args.workers} workers each")
    print(f"{args.seconds:g} s crops out of {TRACK_SECONDS} s FLAC, {args.crops} a GPU and update")
    rate = matrix_rate()
    print("| | updates timed | ms an update | audio-s/s | GB | of the ceiling | start, s |")
    print("|---|---|---|---|---|---|---|")
    for hours in map(float, args.hours.split(",")):
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary)
            make_corpus(folder, round(hours * 3600 / TRACK_SECONDS) * args.gpus, args.k)
            for name in args.model or ["music_hubert", "music2vec"]:
                compare(name, args, folder, hours, rate)


def compare(name: str, args: argparse.Namespace, folder: Path, hours: float, rate: float) -> None:
    """Print a row per program that trains a model."""
    runs = [("ours", our_command, args.gpus, args.updates)]
    if not args.no_stock:
        runs.append(("fairseq", stock_command, 1, args.stock_updates))
    speeds = []
    for who, command, gpus, updates in runs:
        run = folder / f"{who}_{name}"
        found = measure(command(name, args, folder, run), run, updates // 3)
        speed = found.crops * args.seconds / found.seconds  # crops of all GPUs
        speeds.append(speed)
        share = speed * operations(name, args.seconds, args.k) / rate / gpus
        print(
            f"| {name}, {who}, {hours:g} h | {found.updates} | {found.seconds * 1e3:.1f} "
            f"| {speed:,.0f} | {found.memory:.1f} | {share:.0%} | {found.start:.0f} |",
            flush=True,
        )
    if len(speeds) == 2:
        print(f"{name}: {speeds[0] / speeds[1]:.1f} times fairseq's speed", flush=True)


if __name__ == "__main__":
    main()
