"""Probe encoders on the open tasks, and compare them in one table.

    python examples/open_tasks/judge.py --data open_tasks/data --out open_tasks CHECKPOINT...

An encoder is anything that `model.upstream` takes: a checkpoint, `random:CHECKPOINT`, `mfcc`,
`chroma`. Each is opened once; its features of a file are computed once for all tasks. Finished
probes are kept. The table is OUT/judge.md, and OUT/judge.csv for programs.
"""

import argparse
import logging
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import tasks
from table import RANDOM, write_tables

from music_ssl_fairseq.cli import exit_status
from music_ssl_fairseq.errors import InputError


def get_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="judge.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("upstreams", nargs="+", metavar="ENCODER", help="checkpoint, random:CHECKPOINT, mfcc, ...")
    add("--data", type=Path, required=True, help="folder that build.py has written")
    add("--out", type=Path, required=True, help="folder for probes, features and the table")
    add("--small", action="store_true", help="fewer clips, for two CPU cores")
    add("--tasks", default="", metavar="A,B", help="tasks to probe (default: all)")
    add("--seeds", type=int, default=1, metavar="N", help="probes per task, averaged (default: 1)")
    add(
        "--against",
        metavar="ENCODER",
        help="print differences from this encoder (default: the better front end)",
    )
    add("--cpu", action="store_true", help="compute on the CPU, even beside a GPU")
    return parser


def run(
    upstreams: Sequence[str],
    data: Path,
    out: Path,
    small: bool = False,
    tasks_named: Sequence[str] = (),
    against: str | None = None,
    cpu: bool = False,
    seeds: int = 1,
) -> None:
    """Probe what has not been probed, write and print the table."""
    if against is not None and against not in upstreams:
        raise InputError(f"--against {against}: name it among the encoders as well")
    if seeds < 1:
        raise InputError(f"--seeds {seeds}: give the number of probes per task, at least 1")
    _refuse_copies(upstreams)
    form = "small" if small else "full"
    chosen = tasks.chosen(tasks_named, data)
    for task in chosen:
        tasks.build(task, data, out / form / "tasks" / task.name, small)
    folders = [judge(name, chosen, out.resolve(), form, cpu, seeds) for name in upstreams]
    print(write_tables(folders, [task.name for task in chosen], out, form, against))


def _refuse_copies(upstreams: Sequence[str]) -> None:
    """Refuse an encoder that is named twice, because ranks would count it twice."""
    known: dict[str, str] = {}
    for name in upstreams:
        path = name.removeprefix(RANDOM)
        key = name.replace(path, os.path.realpath(path)) if os.path.exists(path) else name
        if key in known:
            raise InputError(f"{known[key]} and {name} are one encoder: name it once")
        known[key] = name


def judge(
    upstream: str, chosen: Sequence[tasks.OpenTask], out: Path, form: str, cpu: bool, seeds: int
) -> list[Path]:
    """Probe an encoder on each task; one folder of probes per seed."""
    from music_ssl_fairseq.probing.features.source import open_source
    from music_ssl_fairseq.probing.several import TaskProbe, folder_name, probe_all
    from music_ssl_fairseq.runtime.device import choose_device

    began = start = time.monotonic()
    device = choose_device("cpu" if cpu else "auto")
    source = open_source(upstream, device)
    source.name = upstream
    name = folder_name(upstream, source)
    folders = [out / form / "probes" / f"{name}{_suffix(seed)}" for seed in range(1, seeds + 1)]
    probes = [
        TaskProbe(
            out / form / "tasks" / task.name,
            folder / task.name,
            {**task.settings, "common.seed": seed},
        )
        for task in chosen
        for seed, folder in enumerate(folders, 1)
    ]
    shared = {
        "model.upstream": upstream,
        "task.cache_dir": str(out / "feature_cache"),
        "common.cpu": device == "cpu",
    }
    for probe, is_new in probe_all(source, probes, shared, anew=True):
        if is_new:
            seconds = time.monotonic() - start
            which = f", seed {probe.settings['common.seed']}" if seeds > 1 else ""
            print(f"{upstream}: {probe.out.name}{which}, {seconds:.1f} s", file=sys.stderr)
        start = time.monotonic()
    print(f"{upstream}: {time.monotonic() - began:.0f} s", file=sys.stderr)
    return folders


def _suffix(seed: int) -> str:
    return f"-seed{seed}" if seed > 1 else ""


def main(argv: Sequence[str] | None = None) -> int:
    logging.basicConfig(level=logging.WARNING, format="warning: %(message)s")
    arguments = vars(get_parser().parse_args(argv))
    arguments["tasks_named"] = [name for name in arguments.pop("tasks").split(",") if name]
    return exit_status(lambda: run(**arguments), arguments["out"])


if __name__ == "__main__":
    sys.exit(main())
