"""Probe encoders on the open tasks, and compare them in one table.

    python examples/open_tasks/judge.py --data open_tasks/data --out open_tasks CHECKPOINT...

An encoder is anything that `model.upstream` takes: a checkpoint, `random:CHECKPOINT`, `mfcc`,
`chroma`. Its features of a file are computed once for all tasks. Finished probes are kept. On a GPU
some tasks are probed side by side. The table is OUT/judge.md, and OUT/judge.csv for programs.
"""

import argparse
import logging
import os
import sys
import threading
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import tasks
from table import RANDOM, write_tables

from music_ssl_fairseq.cli import exit_status
from music_ssl_fairseq.errors import InputError
from music_ssl_fairseq.jobs.pool import WorkerPool, ordered, start_server
from music_ssl_fairseq.runtime.machine import available_cpus

_WARNINGS = "warning: %(message)s"
_JOBS, _JOBS_BYTES = 3, 24e9  # processes on a GPU, and the memory that they may need there


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
    add("--jobs", type=int, metavar="N", help="processes (default: 3 on a GPU of 24 GB, else 1)")
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
    jobs: int | None = None,
) -> None:
    """Probe what has not been probed, write and print the table."""
    from music_ssl_fairseq.probing.features.source import require_sources

    if against is not None and against not in upstreams:
        raise InputError(f"--against {against}: name it among the encoders as well")
    if seeds < 1:
        raise InputError(f"--seeds {seeds}: give the number of probes per task, at least 1")
    if jobs is not None and jobs < 1:
        raise InputError(f"--jobs {jobs}: give the number of processes, at least 1")
    _refuse_copies(upstreams)
    form = "small" if small else "full"
    processes = jobs or (1 if cpu or available_cpus() < 2 * _JOBS else _JOBS)
    if processes > 1:  # the server imports while the tasks' folders are made
        start_server(["music_ssl_fairseq.probing.probe_tasks"])
    chosen = tasks.chosen(tasks_named, data)
    for task in chosen:
        tasks.build(task, data, out / form / "tasks" / task.name, small)
    if jobs is None and processes > 1 and not _is_roomy_gpu():  # asked late, as it imports torch
        processes = 1
    require_sources(upstreams)
    groups = [chosen] if processes == 1 else tasks.side_by_side(chosen)
    items = [(name, group) for name in upstreams for group in groups]
    workers = 0 if processes == 1 else min(processes, len(items))
    pool = WorkerPool(workers, advice="the same command continues; give fewer --jobs")
    job = partial(judge, out=out.resolve(), form=form, cpu=cpu, seeds=seeds)
    began, folders = time.monotonic(), {}
    for (name, group), found in zip(items, ordered(job, items, pool), strict=True):
        folders[name] = found
        if group is groups[-1]:
            print(f"{name}: {time.monotonic() - began:.0f} s", file=sys.stderr)
            began = time.monotonic()
    print(write_tables(list(folders.values()), [task.name for task in chosen], out, form, against))


def _is_roomy_gpu() -> bool:
    """Return whether there is a GPU for several processes: heads are too small to fill it."""
    from torch import cuda

    return cuda.is_available() and cuda.get_device_properties(0).total_memory >= _JOBS_BYTES


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
    item: tuple[str, Sequence[tasks.OpenTask]], out: Path, form: str, cpu: bool, seeds: int
) -> list[Path]:
    """Probe an encoder on each of some tasks; one folder of probes per seed."""
    from tqdm import tqdm

    from music_ssl_fairseq.probing.features.source import open_source
    from music_ssl_fairseq.probing.probe_tasks import TaskProbe, folder_name, probe_all
    from music_ssl_fairseq.runtime.machine import choose_device

    logging.basicConfig(level=logging.WARNING, format=_WARNINGS)
    # tqdm's own lock is a semaphore, which a worker that is killed leaves behind. torch ends its
    # compilers first, for longer than the pool waits.
    tqdm.set_lock(threading.RLock())
    upstream, chosen = item
    start = time.monotonic()
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
    return folders


def _suffix(seed: int) -> str:
    return f"-seed{seed}" if seed > 1 else ""


def main(argv: Sequence[str] | None = None) -> int:
    logging.basicConfig(level=logging.WARNING, format=_WARNINGS)
    arguments = vars(get_parser().parse_args(argv))
    arguments["tasks_named"] = [name for name in arguments.pop("tasks").split(",") if name]
    return exit_status(lambda: run(**arguments), arguments["out"])


if __name__ == "__main__":
    sys.exit(main())
