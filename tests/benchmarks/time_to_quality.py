"""Time whole trainings until they are good: seconds to a held-out measure that holds.

    python -m tests.benchmarks.time_to_quality --manifests manifests --labels labels \\
      --levels 7.5,7,6.75 --seeds 1,2,3 --record docs/records/NAME short optimization.lr=[0.0004]
    python -m tests.benchmarks.time_to_quality --again docs/records/NAME --levels 6.9

The last arguments are a config of `examples/MODEL` and overrides of it, for fairseq-hydra-train. It
counts wall time, from the start of the command to the second of two validations in a row at a
level or better: bits of masked frames of musicHuBERT, `pred_music` of music2vec. It includes
imports, data, validations and checkpoints. Kernels are compiled before, by a run of a few updates
into an empty cache; the time with that run's later start is printed beside, as `cold`.

The corpus is the one given; its hashes are printed. Held-out crops are cut once, and their masks
are fixed: `task.seed` is 1 in all runs. Seeds vary the initial weights, dropout and the order of
crops. `--reference` runs stock fairseq's HuBERT as well: its published settings, with a schedule of
`--reference-updates`, on the same held-out crops and masks. A run ends once the best of the levels
holds. A record is written after each seed; the same command continues with those that it lacks.
"""

import argparse
import os
import signal
import subprocess
import sys
import tempfile
import time
from datetime import datetime
from pathlib import Path
from typing import Any

import torch

from music_ssl_fairseq.cli import exit_status
from music_ssl_fairseq.data.label_metadata import choose_label_rate
from music_ssl_fairseq.data.manifest import Manifest
from music_ssl_fairseq.data.run_identity import label_identity, manifest_identity
from music_ssl_fairseq.errors import InputError
from music_ssl_fairseq.runtime.texts import read_object
from tests.benchmarks import held_out
from tests.benchmarks.time_to_quality_report import entries, held_at, table, write
from tests.benchmarks.train_run import stock_config

ROOT = Path(__file__).parents[2]
MEASURES = {  # model -> keys of its validation's log: ours, fairseq's; whether more is better
    "music_hubert": ("valid_loss_m", "valid_loss_m_0", False),
    "music2vec": ("valid_pred_music", None, True),
}
LEVELS = {"music_hubert": None, "music2vec": [0.20]}


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", choices=list(MEASURES), default="music_hubert")
    parser.add_argument("--manifests", type=Path, help="folder with train.tsv and valid.tsv")
    parser.add_argument("--labels", type=Path, help="folder with train.km, of music_hubert")
    parser.add_argument("--levels", help="the first is the one that counts (music2vec: 0.20)")
    parser.add_argument("--seeds", default="1", help="default: %(default)s")
    parser.add_argument("--validate-every", type=int, default=50, help="updates (%(default)s)")
    parser.add_argument("--crops", type=int, default=400, help="held-out, at most (%(default)s)")
    parser.add_argument("--seconds", type=float, default=5.0, help="of one (%(default)s)")
    parser.add_argument("--limit", type=float, default=3600, help="seconds of a run (%(default)s)")
    parser.add_argument("--no-cold", action="store_true", help="use the usual cache of kernels")
    parser.add_argument(
        "--reference", action="store_true", help="stock fairseq, too: needs 16 kHz mono files"
    )
    parser.add_argument("--reference-updates", type=int, default=3000, help="(%(default)s)")
    parser.add_argument("--reference-override", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--record", type=Path, help="folder to write: logs, config, figures, page")
    parser.add_argument("--again", type=Path, help="a record, to be read with other levels")
    parser.add_argument("command", nargs="*", help="config name and overrides")
    args = parser.parse_args()
    if args.levels is not None:
        args.levels = [float(level) for level in args.levels.split(",")]
    if args.again is None:
        args.levels = args.levels or LEVELS[args.model]
        needed = {"--manifests": args.manifests, "--levels": args.levels, "CONFIG": args.command}
        if args.model == "music_hubert":
            needed["--labels"] = args.labels
        missing = [name for name, value in needed.items() if not value]
        if missing:
            parser.error(f"missing: {', '.join(missing)}")
    if args.reference and MEASURES[args.model][1] is None:
        parser.error("--reference: fairseq's data2vec logs nothing like pred_music")
    return args


class Run:
    """One training command, watched through its log."""

    def __init__(self, command: list[str], folder: Path, caches: Path | None, key: str):
        self.command = [sys.executable, "-m", "fairseq_cli.hydra_train", *command]
        self.command.append(f"hydra.run.dir={folder}")
        self.folder, self.key = folder, key
        self._environment = dict(os.environ)
        if caches is not None:
            self._environment["TORCHINDUCTOR_CACHE_DIR"] = str(caches / "inductor")
            self._environment["TRITON_CACHE_DIR"] = str(caches / "triton")

    def until(self, enough: Any, limit: float) -> dict[str, Any]:
        """Train until `enough(entries)`, the command's own end, or the limit in seconds."""
        began = time.time()
        self.folder.parent.mkdir(parents=True, exist_ok=True)
        with open(f"{self.folder}.out", "wb") as out:
            process = subprocess.Popen(
                self.command, cwd=ROOT, env=self._environment, stdout=out, stderr=out
            )
            try:
                while process.poll() is None and time.time() - began < limit:
                    time.sleep(0.2)
                    if enough(self._entries(began)):
                        break
                wall = time.time() - began
            finally:
                self._end(process)
        found = self._entries(began)
        if not found:
            text = Path(f"{self.folder}.out").read_text(errors="replace")
            print(f"error: no figures of {self.folder.name}\n{text[-3000:]}", file=sys.stderr)
        starts = [e["seconds"] for e in found if e.get("num_updates", 0) >= 10]
        start = starts[0] if starts else None
        return {"start": start, "wall": round(wall, 1), "curve": self._curve(found)}

    def _entries(self, began: float) -> list[dict[str, Any]]:
        log = self.folder / "hydra_train.log"
        return entries(log.read_text(errors="replace"), began) if log.exists() else []

    def _curve(self, found: list[dict[str, Any]]) -> list[list[float]]:
        return [[e["valid_num_updates"], e["seconds"], e[self.key]] for e in found if self.key in e]

    def reached(self, level: float, more_is_better: bool) -> Any:
        """Return whether the log's validations hold a level, as a function for `until`."""
        return lambda found: held_at(self._curve(found), level, more_is_better) is not None

    @staticmethod
    def _end(process: subprocess.Popen) -> None:
        """Stop a run: ours saves at the first signal."""
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(60)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def our_command(args: argparse.Namespace, corpus: Path, seed: int, every: int) -> list[str]:
    """fairseq-hydra-train with a config of `examples/` and the user's overrides."""
    name, *overrides = args.command
    return [
        *("--config-dir", str(ROOT / "examples" / args.model), "--config-name", name),
        *(f"task.data={corpus}", f"++task.seed={held_out.SEED}", f"common.seed={seed}"),
        *([f"task.label_dir={corpus}"] if args.labels else []),
        *(f"dataset.validate_interval_updates={every}", "common.log_interval=10"),
        *overrides,
    ]


def reference_command(args: argparse.Namespace, corpus: Path, seed: int) -> list[str]:
    """fairseq-hydra-train with fairseq's own HuBERT, as hubert_base_librispeech sets it."""
    import yaml

    sizes = argparse.Namespace(seconds=250_000 / 16_000)
    config = stock_config(args.model, sizes, corpus)
    config["task"]["min_sample_size"] = min(32_000, round(args.seconds * 16_000))
    config["common"] |= {"user_dir": str(held_out.write_plugin(corpus)), "seed": seed}
    config["common"] |= {"log_interval": 10}
    config["dataset"] |= {"num_workers": 6, "max_tokens": 1_400_000, "validate_interval": 1_000_000}
    config["dataset"] |= {"validate_interval_updates": args.validate_every}
    config["dataset"] |= {"required_batch_size_multiple": 1}
    config["checkpoint"] = {"save_interval": 1_000_000, "save_interval_updates": 1000}
    config["checkpoint"] |= {"keep_interval_updates": 1, "no_epoch_checkpoints": True}
    config["optimization"] |= {"lr": [5e-4], "max_update": args.reference_updates}
    config["optimizer"] |= {"weight_decay": 0.01}
    config["lr_scheduler"] = {"_name": "polynomial_decay"}
    config["lr_scheduler"] |= {"warmup_updates": max(1, args.reference_updates * 8 // 100)}
    file = corpus / "reference.yaml"
    file.write_text("# @package _group_\n" + yaml.safe_dump(config))
    save = f"checkpoint.save_dir={corpus}/reference-{seed}"
    options = ["--config-dir", str(corpus), "--config-name", file.stem, save]
    return [*options, *args.reference_override]


def _has_begun(found: list[dict[str, Any]]) -> bool:
    """Return whether a run has made ten updates and validated after them: all is compiled."""
    trained = any(entry.get("num_updates", 0) >= 10 for entry in found)
    return trained and any(entry.get("valid_num_updates", 0) >= 10 for entry in found)


def earlier(record: Path | None, figures: dict[str, Any]) -> dict[str, Any]:
    """Return the figures of a record that was begun, or these where there is none.

    Raises:
        InputError: if it is of another command, corpus or machine.
    """
    if record is None or not (record / "figures.json").exists():
        return figures
    there = read_object(record / "figures.json", "give another --record")
    for name in ("device", "torch", "model", "command", "corpus", "levels"):
        if there.get(name) != figures[name]:
            raise InputError(
                f"{record}: a record of another {name}: {there.get(name)}, here {figures[name]}; "
                "give another --record"
            )
    return there


def measure(args: argparse.Namespace, folder: Path) -> bool:
    """Make the corpus, run all trainings, print the table; False if one gave no figures.

    Raises:
        InputError: as `earlier`, or if a manifest or label file is not there.
    """
    corpus, caches = folder / "corpus", None if args.no_cold else folder / "caches"
    held_out.make_corpus(args.manifests, args.labels, corpus, args.seconds, args.crops)
    identity = {"held-out crops": held_out.digest(corpus)}
    for split in ("train", "valid"):
        identity |= manifest_identity(Manifest(corpus / f"{split}.tsv"))
    if args.labels:
        identity |= label_identity(corpus, ["train", "valid"], choose_label_rate(corpus, None))
    for name, text in identity.items():
        print(f"{name}: {text}", flush=True)
    ours, theirs, more = MEASURES[args.model]
    figures: dict[str, Any] = {
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU",
        "torch": torch.__version__,
        "date": datetime.now().isoformat(timespec="minutes"),
        "model": args.model,
        "command": args.command,
        "corpus": identity,
        "levels": args.levels,
        "more_is_better": more,
        "cold_start": None,
        "runs": {},
    }
    figures = earlier(args.record, figures)
    if not args.no_cold and figures["cold_start"] is None:
        run = Run(our_command(args, corpus, 1, 10), folder / "cold", caches, ours)
        few = run.until(_has_begun, args.limit)
        figures["cold_start"] = few["start"]
        print(f"cold: the tenth update after {few['start']} s", flush=True)
    plan = [("ours", ours, lambda seed: our_command(args, corpus, seed, args.validate_every))]
    if args.reference:
        plan.append(("fairseq", theirs, lambda seed: reference_command(args, corpus, seed)))
    best, complete = max(args.levels) if more else min(args.levels), True
    for who, key, command in plan:
        for seed in map(int, args.seeds.split(",")):
            if str(seed) in figures["runs"].get(who, {}):
                continue
            run = Run(command(seed), folder / f"{who}-{seed}", caches, key)
            result = run.until(run.reached(best, more), args.limit)
            times = [held_at(result["curve"], level, more) for level in args.levels]
            print(f"{who}, seed {seed}: {result['curve'][-1:]}, {times}", flush=True)
            complete = complete and bool(result["curve"])
            if result["curve"]:
                figures["runs"].setdefault(who, {})[str(seed)] = result
                if args.record:
                    write(figures, folder, args.record)
    print(table(figures))
    return complete


def run(args: argparse.Namespace) -> bool:
    """Measure, or read a record again."""
    if args.again is not None:
        figures = read_object(args.again / "figures.json")
        figures["levels"] = args.levels or figures["levels"]
        print(table(figures))
        return True
    with tempfile.TemporaryDirectory() as temporary:
        return measure(args, Path(temporary))


def main() -> int:
    args = parse()
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    again = "interrupted; with --record, this continues:"
    return exit_status(lambda: run(args), args.record or "", again)


if __name__ == "__main__":
    sys.exit(main())
