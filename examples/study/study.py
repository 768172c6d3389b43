"""Run the study: manifests, labels, trainings and judgements of every row, several side by side.

    python examples/study/study.py --music DIR --speech DIR --judge DIR --work DIR --results DIR

Each finished row leaves RESULTS/ROW-sSEED.json, its draws (.npz) and its log (.log.gz), and is not
run again: the same command continues, here or on another machine that has RESULTS alone.
Checkpoints, labels and probes are in --work. At the end it says which rows are left, and how long
they will take.
"""

import argparse
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from places import Places
from rows import read
from schedule import Study
from steps import Steps

from music_ssl_fairseq.cli import exit_status
from music_ssl_fairseq.errors import InputError
from music_ssl_fairseq.runtime.files import hold
from music_ssl_fairseq.runtime.machine import available_cpus

HERE = Path(__file__).parent


def get_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="study.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--music", type=Path, help="folder of music: Ogg, Opus, FLAC or WAV")
    add("--speech", type=Path, help="folder of speech, for the rows that need it")
    add("--judge", type=Path, required=True, help="data of the open tasks (open_tasks/data)")
    add("--work", type=Path, default=Path("study"), help="checkpoints, labels, probes (study)")
    add("--results", type=Path, default=Path("study/results"), help="small files of finished rows")
    add("--table", type=Path, default=HERE / "rows.yaml", help="the rows (rows.yaml)")
    add("--rows", default="", metavar="A,B", help="only these (default: all)")
    add("--seeds", default="", metavar="1,2", help="only these (default: the table's)")
    add("--audio-seconds", type=int, metavar="N", help="of every row (default: the table's)")
    add("--streams", type=int, help="rows side by side per GPU (default: 1; on a CPU one per core)")
    add("--judges", type=int, help="rows judged side by side (default: one per GPU, at least 2)")
    add("--time-limit", type=float, metavar="SECONDS", help="end by then, with checkpoints")
    add("--workers", type=int, default=available_cpus(), help="processes (default: one per core)")
    add("--miniature", action="store_true", help="tiny models and few tasks, for two CPU cores")
    return parser


def visible_gpus() -> list[str]:
    """List the GPUs that this process may use, as CUDA_VISIBLE_DEVICES names them."""
    from torch.cuda import device_count

    named = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")
    return named if named != [""] else [str(i) for i in range(device_count())]


def run(arguments: argparse.Namespace) -> bool:
    """Run a study as the command line says; see `Study.run`."""
    gpus = [] if arguments.miniature else visible_gpus()
    judges = max(2, len(gpus)) if arguments.judges is None else arguments.judges
    streams = arguments.streams
    if streams is None:
        streams = 1 if gpus else min(4, available_cpus())
    given = (streams, judges, arguments.workers, arguments.audio_seconds or 1)
    if min(given) < 1 or arguments.audio_seconds == 0:
        raise InputError("--streams, --judges, --workers and --audio-seconds must be at least 1")
    try:
        seeds = [int(seed) for seed in arguments.seeds.split(",") if seed]
    except ValueError:
        raise InputError(f"--seeds {arguments.seeds}: numbers, separated by commas") from None
    folders = {"music": arguments.music, "speech": arguments.speech}
    places = Places(
        read(arguments.table, arguments.miniature, arguments.audio_seconds),
        arguments.work,
        arguments.results,
        arguments.judge,
        {name: folder for name, folder in folders.items() if folder},
        arguments.miniature,
    )
    side_by_side = max(1, len(gpus)) * streams
    loaders = 0 if arguments.miniature else max(1, min(10, arguments.workers // side_by_side))
    steps = Steps(places, arguments.workers, loaders)
    study = Study(steps, gpus, streams, judges, arguments.time_limit)
    rows = study.wanted([name for name in arguments.rows.split(",") if name], seeds)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda *_: study.stop())
    with hold(arguments.work / "lock", "runs a study", "wait for it, or give another --work"):
        return study.run(rows)


def main(argv: Sequence[str] | None = None) -> int:
    arguments = get_parser().parse_args(argv)
    return exit_status(lambda: run(arguments), arguments.work)


if __name__ == "__main__":
    sys.exit(main())
