"""Command line that trains, tests and reports probes of upstreams on any number of tasks."""

import shlex
import sys
import time
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra_plugins._music_ssl_fairseq_command import shell_line
from music_ssl_fairseq.cli import CHECKPOINT, Parser, exit_status, new_parser
from music_ssl_fairseq.errors import InputError

DESCRIPTION = """\
Probe encoders on tasks: train a grid of heads on each task's frozen features, choose the head on
the validation split, score it on the test split, and report all scores in one table. Results are
those of fairseq-hydra-train and fairseq-validate with examples/probing/config.yaml.

The same command resumes: features and finished tasks are kept. Each result is tied to its data and
settings. A folder that holds results of others is an error, unless --force replaces them.
"""

EXAMPLES = """\
examples:
  python -m music_ssl_fairseq probe --upstream runs/music_hubert/short --task probing/gtzan-genre
  python -m music_ssl_fairseq probe --upstream FILE random:FILE mfcc chroma --task probing/*
  python -m music_ssl_fairseq probe --upstream FILE --task DIR --set model.layers=4,all

`python -m manifests_tools NAME --root AUDIO_DIR --out DIR` writes the folder of a task, and
`python -m manifests_tools custom --csv FILE --kind multi-class --out DIR` that of your own labels.
"""

_OWN_OPTIONS = {
    "model.upstream": "--upstream",
    "task.data": "--task",
    "task.output_dir": "--out",
    "task.cache_dir": "--cache",
    "common.cpu": "--cpu",
}


_RESAMPLES = 1000


def get_parser() -> Parser:
    parser = new_parser("music_ssl_fairseq probe", DESCRIPTION, EXAMPLES)
    add = parser.option
    add(
        "--upstream X",
        f"what to probe: {CHECKPOINT}; random:CHECKPOINT for the same model with random weights; "
        "or a front end without training: mfcc, chroma, logmel, cqt",
        nargs="+",
        required=True,
    )
    add("--task DIR", "folders of tasks", type=Path, nargs="+", required=True)
    add(
        "--out",
        "results go to DIR/TASK/UPSTREAM, the table to DIR/report",
        default=Path("runs/probing"),
    )
    add("--split", "split to score: test or valid", default="test")
    add(
        "--set NAME=VALUE",
        "settings of examples/probing/config.yaml, such as task.window_seconds=30",
        default=[],
        nargs="+",
        action="extend",
    )
    add("--cache DIR", "keeps features", default="feature_cache")
    add("--cpu", "compute on the CPU, even beside a GPU", action="store_true")
    add("--force", "replace results of other data or settings", action="store_true")
    return parser


def run(a: Namespace) -> list[Path]:
    """Probe what has not been probed, print scores, and write the report.

    The folders of the results are returned, task by task for each upstream.
    """
    from music_ssl_fairseq.probing.features.source import open_source, require_sources
    from music_ssl_fairseq.probing.probe_tasks import TaskProbe, folder_name, probe_all
    from music_ssl_fairseq.runtime.machine import choose_device

    names = _task_names(a.task)
    settings = {**_settings(a.set), "task.cache_dir": a.cache, "common.cpu": a.cpu}
    require_sources(a.upstream)
    done = []
    for name in dict.fromkeys(a.upstream):
        device = choose_device("cpu" if a.cpu else "auto")
        source = open_source(name, device, int(settings.get("model.upstream_seed", 0)))
        folder = folder_name(name, source)
        probes = [TaskProbe(data, a.out / names[data] / folder) for data in names]
        shared = {**settings, "model.upstream": name}
        began = time.monotonic()
        for probe, new in probe_all(source, probes, shared, a.split, a.force):
            took = f"{time.monotonic() - began:.0f} s" if new else "done already"
            print(f"{name}: {names[probe.data]}: {took}", file=sys.stderr)
            done.append(probe.out)
            began = time.monotonic()
    _report(a.out, done, a.split)
    _say_what_next(a.upstream, a.task, a.out)
    return done


def _report(out: Path, folders: Sequence[Path], split: str) -> None:
    """Print the scores of these folders, and write the report of everything below `out`."""
    from importlib.util import find_spec

    from music_ssl_fairseq.report.__main__ import PAGE, write
    from music_ssl_fairseq.report.gather import find
    from music_ssl_fairseq.report.tables import aligned

    print(aligned(find(folders, split, _RESAMPLES, 0)))
    options = {"out": out / "report", "split": split, "resamples": _RESAMPLES, "seed": 0}
    write(Namespace(folders=[out], no_plot=find_spec("matplotlib") is None, **options))
    print(f"report: {out / 'report' / PAGE}")


def _say_what_next(upstream: Sequence[str], task: Sequence[Path], out: Path) -> None:
    """Print the command that compares a lone upstream with what it must exceed."""
    if len(upstream) > 1 or not Path(upstream[0]).exists():
        return
    others = [*upstream, f"random:{upstream[0]}", "mfcc", "chroma"]
    tasks = shlex.join(map(str, task))
    print(
        "next, to compare: python -m music_ssl_fairseq probe --upstream "
        + shell_line(f"{shlex.join(others)} --task {tasks} --out {shlex.quote(str(out))}")
    )


def _task_names(folders: Sequence[Path]) -> dict[Path, str]:
    """Read the names of all tasks; two of one name would share their results."""
    from music_ssl_fairseq.probing.spec import read_spec

    found: dict[Path, str] = {}
    for folder in dict.fromkeys(folders):
        name = read_spec(folder).name
        others = [other for other in found if found[other] == name]
        if others:
            raise InputError(
                f"{folder}: its task is named {name}, as that of {others[0]}: make one of them "
                "again with another name (manifests_tools custom --name NAME)"
            )
        found[folder] = name
    return found


def _settings(pairs: Sequence[str]) -> dict[str, Any]:
    import yaml

    found = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not equals:
            raise InputError(f"--set {pair}: give NAME=VALUE, such as model.layers=4,all")
        if name in _OWN_OPTIONS:
            raise InputError(f"--set {name}: give it with {_OWN_OPTIONS[name]}")
        try:
            found[name] = yaml.safe_load(value)
        except yaml.YAMLError:
            raise InputError(f"--set {pair}: {value!r} is no number, text or [list]") from None
    return found


def main(argv: Sequence[str] | None = None) -> int:
    import logging

    arguments = get_parser().parse_args(argv)
    logging.basicConfig(level=logging.WARNING, format="warning: %(message)s")
    return exit_status(lambda: bool(run(arguments)), arguments.out)


if __name__ == "__main__":
    sys.exit(main())
