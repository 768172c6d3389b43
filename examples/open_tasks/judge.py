"""Probe encoders on the open tasks, and compare them in one table.

    python examples/open_tasks/judge.py --data open_tasks/data --out open_tasks CHECKPOINT...

An encoder is anything that `model.upstream` takes: a checkpoint, `random:CHECKPOINT`, `mfcc`,
`chroma`. Each is opened once; its features of a file are computed once for all tasks. What is there
already is not made again. The table is OUT/judge.md, and OUT/judge.csv for programs.
"""

import argparse
import json
import logging
import re
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import tasks
from table import write_tables

from music_ssl_fairseq.cli import exit_status
from music_ssl_fairseq.errors import InputError
from music_ssl_fairseq.runtime.files import atomic_path
from music_ssl_fairseq.runtime.texts import read_object

CONFIG = Path(__file__).parents[1] / "probing" / "config.yaml"


def get_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="judge.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("upstreams", nargs="+", metavar="ENCODER", help="checkpoint, random:CHECKPOINT, mfcc, ...")
    add("--data", type=Path, required=True, help="folder that build.py has written")
    add("--out", type=Path, required=True, help="folder for probes, features and the table")
    add("--small", action="store_true", help="fewer clips, for two CPU cores")
    add("--tasks", default="", metavar="A,B", help="only these (default: all)")
    add("--against", metavar="ENCODER", help="differences from it (default: better front end)")
    add("--cpu", action="store_true", help="leave a GPU alone")
    return parser


def run(
    upstreams: Sequence[str],
    data: Path,
    out: Path,
    small: bool = False,
    tasks_named: Sequence[str] = (),
    against: str | None = None,
    cpu: bool = False,
) -> None:
    """Probe what has not been probed, write and print the table."""
    if against is not None and against not in upstreams:
        raise InputError(f"--against {against}: name it among the encoders as well")
    if len(set(upstreams)) < len(upstreams):
        raise InputError("an encoder is named twice")
    form = "small" if small else "full"
    chosen = tasks.chosen(tasks_named, data)
    digests = {}
    for task in chosen:
        digests[task.name] = tasks.build(task, data, out / form / "tasks" / task.name, small)
    folders = [
        probe_all(upstream, chosen, digests, out.resolve(), form, cpu) for upstream in upstreams
    ]
    print(write_tables(folders, [task.name for task in chosen], out, form, against))


def probe_all(
    upstream: str,
    chosen: Sequence[tasks.OpenTask],
    digests: dict[str, str],
    out: Path,
    form: str,
    cpu: bool,
) -> Path:
    """Probe an encoder on each task; the folder of its probes."""
    import torch

    from music_ssl_fairseq.probing import direct
    from music_ssl_fairseq.probing.features.source import open_source

    began = time.monotonic()
    on_cpu = cpu or not torch.cuda.is_available()
    source = open_source(upstream, "cpu" if on_cpu else "cuda")
    source.name = upstream
    name = re.sub(r"[^A-Za-z0-9.-]+", "_", upstream).strip("_")[-60:]
    folder = out / form / "probes" / f"{name}-{source.fingerprint[:8]}"
    for task in chosen:
        values = {
            **task.settings,
            "model.upstream": upstream,
            "task.data": str(out / form / "tasks" / task.name),
            "task.output_dir": str(folder / task.name),
            "task.cache_dir": str(out / "feature_cache"),
            "common.cpu": on_cpu,
        }
        made_of = {"data": digests[task.name], "settings": task.settings}
        stamp = folder / task.name / "judge.json"
        if is_done(stamp, made_of):
            continue
        start = time.monotonic()
        direct.run(direct.settings(CONFIG, values), source)
        with atomic_path(stamp) as temporary:
            temporary.write_text(json.dumps(made_of))
        print(f"{upstream}: {task.name}, {time.monotonic() - start:.1f} s", file=sys.stderr)
    print(f"{upstream}: {time.monotonic() - began:.0f} s", file=sys.stderr)
    return folder


def is_done(stamp: Path, made_of: dict[str, Any]) -> bool:
    """Return whether a probe of the same data and settings has been finished."""
    try:
        return read_object(stamp) == made_of
    except InputError:  # missing or damaged
        return False


def main(argv: Sequence[str] | None = None) -> int:
    logging.basicConfig(level=logging.WARNING)
    arguments = vars(get_parser().parse_args(argv))
    arguments["tasks_named"] = [name for name in arguments.pop("tasks").split(",") if name]
    return exit_status(lambda: run(**arguments), arguments["out"])


if __name__ == "__main__":
    sys.exit(main())
