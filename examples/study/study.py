"""Run the study: manifests, labels, trainings and judgements of every row, several side by side.

    python examples/study/study.py --music DIR --speech DIR --judge DIR --work DIR --results DIR

Each finished row leaves RESULTS/ROW-sSEED.json, its draws (.npz) and its log (.log.gz). A row
whose JSON has the digest of the same settings and data is skipped, so the same command resumes,
here or on another machine that has RESULTS alone. Checkpoints, labels and probes are in --work. A
row is judged while the next one trains.
"""

import argparse
import hashlib
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import results
from rows import Row, Table, read

from music_ssl_fairseq.cli import exit_status
from music_ssl_fairseq.errors import InputError
from music_ssl_fairseq.runtime.cpus import available_cpus
from music_ssl_fairseq.runtime.files import atomic_path
from music_ssl_fairseq.runtime.texts import read_object

HERE = Path(__file__).parent
TRAIN = [
    *(sys.executable, "-c"),
    "import sys; sys.argv[0] = 'fairseq-hydra-train'; "
    "from fairseq_cli.hydra_train import cli_main; cli_main()",
]
TASK_GROUPS = (
    *("key,chord,pitch", "instrument,families,tempo,metre", "beat"),
    "downbeat,collection,package,speaker",
)
"""Tasks of one process of the judge."""
MINIATURE_TASKS = ("pitch,instrument",)
AUDIO_PER_SECOND = {"music_hubert": 9000.0, "music2vec": 7000.0}
"""Audio-seconds per second of one GPU, as long as no row here has been measured."""
JUDGE_SECONDS, START_SECONDS, STOP_SECONDS = 150.0, 45.0, 25.0

Call = Callable[[Sequence[str], Path, dict[str, str]], int]


@dataclass
class Options:
    """What the command line says."""

    work: Path
    results: Path
    judge: Path
    corpora: dict[str, Path]
    table: Path = HERE / "rows.yaml"
    names: Sequence[str] = ()
    seeds: Sequence[int] = ()
    streams: int = 1
    time_limit: float | None = None
    workers: int = 1
    gpus: Sequence[str] = ()
    miniature: bool = False
    judges: int = 2


class Processes:
    """Commands in processes of their own, which end together."""

    def __init__(self) -> None:
        self._running: set[subprocess.Popen] = set()

    def __call__(self, command: Sequence[str], log: Path, environment: dict[str, str]) -> int:
        """Run a command, append what it says to `log`, and return its exit status."""
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("ab") as file:
            process = subprocess.Popen(
                command, stdout=file, stderr=subprocess.STDOUT, env={**os.environ, **environment}
            )
            self._running.add(process)
            status = process.wait()
            self._running.discard(process)
        return status

    def stop(self) -> None:
        """Ask all to end; trainings write a checkpoint first."""
        for process in list(self._running):
            process.send_signal(signal.SIGTERM)


@dataclass
class Study:
    """The state of a study in progress.

    Attributes:
        call: how commands are run, by default in processes.
    """

    options: Options
    call: Call = field(default_factory=Processes)

    def __post_init__(self) -> None:
        self.table: Table = read(self.options.table, self.options.miniature)
        self.began = time.monotonic()
        self.condition = threading.Condition()
        self.running: set[str] = set()
        self.failed: set[str] = set()
        self.trained: dict[str, float] = {}
        self.digests: dict[str, str] = {}
        self.slots = threading.Semaphore(self.options.judges)
        self.label_jobs: dict[tuple[str, str], Future[bool]] = {}

    # What is to do

    def wanted(self) -> list[Row]:
        """Rows of the options, first seeds first.

        Raises:
            InputError: if there is no row of a name.
        """
        rows, names = self.table.rows, self.options.names
        for name in names:
            if name not in {row.name for row in rows}:
                raise InputError(f"--rows: no row {name!r} in {self.options.table}")
        chosen = [
            row
            for row in rows
            if (not names or row.name in names)
            and (not self.options.seeds or not row.family or row.seed in self.options.seeds)
        ]
        return sorted(chosen, key=lambda row: row.seed)

    def digest(self, row: Row) -> str:
        """Digest of settings, data and judge: what makes a result the same."""
        corpora = {r.corpus for r in (row, *self._ancestors(row)) if r.corpus}
        data = {name: _manifest_digest(self._manifests(name)) for name in sorted(corpora)}
        return self.table.digest(row, data, self.options.miniature)

    def _ancestors(self, row: Row) -> list[Row]:
        direct = self.table.needs(row)
        return [*(x for other in direct for x in self._ancestors(other)), *direct]

    def _manifests(self, corpus: str) -> Path:
        return self.options.work / "manifests" / corpus

    def checkpoint(self, row: Row) -> Path:
        return self.options.work / "runs" / row.id / "checkpoints" / "checkpoint_last.pt"

    def is_trained(self, row: Row) -> bool:
        """Return whether the run has ended, with these settings."""
        try:
            return read_object(self._stamp(row))["digest"] == self.digests[row.id]
        except (InputError, KeyError):
            return False

    def _stamp(self, row: Row) -> Path:
        return self.options.work / "runs" / row.id / "trained.json"

    # Steps

    def prepare(self, rows: Sequence[Row]) -> list[Row]:
        """Make manifests; the rows that are not done, after those whose checkpoints they need."""
        everything = [x for row in rows for x in (*self._ancestors(row), row)]
        for corpus in sorted({row.corpus for row in everything if row.corpus}):
            self._make_manifests(corpus)
        self.digests = {row.id: self.digest(row) for row in everything}
        todo: dict[str, Row] = {}
        for row in rows:
            if not results.is_done(self.options.results, row.id, self.digests[row.id]):
                todo |= {x.id: x for x in (*self._ancestors(row), row)}
            else:
                print(f"{row.id}: done already", flush=True)
        return list(todo.values())

    def _make_manifests(self, corpus: str) -> None:
        out, root = self._manifests(corpus), self.options.corpora.get(corpus)
        if (out / "train.tsv").exists():
            return
        if root is None or not root.is_dir():
            raise InputError(
                f"--{corpus}: name the folder of the corpus (examples/study/corpus.py)"
            )
        command = [sys.executable, "-m", "manifests_tools", "pretrain", "--root", str(root)]
        command += ["--out", str(out), "--workers", str(self.options.workers), "--force"]
        if self.options.miniature:
            command += ["--group-by", "file", "--valid-share", "0.2"]
        if self.call(command, self._log(f"manifests-{corpus}"), {}):
            raise InputError(f"no manifests of {root}: see {self._log(f'manifests-{corpus}')}")

    def _log(self, name: str) -> Path:
        return self.options.work / "logs" / f"{name}.log"

    def label_folder(self, corpus: str, name: str) -> Path:
        return self.options.work / "labels" / corpus / name

    def _label(self, corpus: str, name: str, workers: int) -> bool:
        """Make one set of labels; the labeler leaves a finished one as it is."""
        about, out = self.table.labels[name], self.label_folder(corpus, name)
        command = [sys.executable, "-m", "music_ssl_fairseq.label", "--k", str(about["k"])]
        command += ["--features", about["features"], "--manifests", str(self._manifests(corpus))]
        command += ["--labels", str(out), "--workers", str(workers)]
        if "checkpoint" in about:
            command += ["--layer", str(about["layer"])]
            command += [
                "--checkpoint",
                str(self.checkpoint(self.table.row(about["checkpoint"], 0))),
            ]
        ended = self.call(command, self._log(f"labels-{corpus}-{name}"), {}) == 0
        with self.condition:
            self.condition.notify_all()
        return ended

    def train_command(self, row: Row) -> list[str]:
        """The training's command, as a user would type it."""
        labels = [str(self.label_folder(row.corpus, name).resolve()) for name in row.labels]
        updates, manifests = row.updates(), self._manifests(row.corpus).resolve()
        overrides: dict[str, Any] = {
            "hydra.run.dir": (self.options.work / "runs" / row.id).resolve(),
            "task.data": manifests,
            **({"task.label_dir": f"[{','.join(labels)}]"} if labels else {}),
            "common.seed": row.seed,
            "common.tensorboard_logdir": "null",
            "common.log_interval": max(1, updates // 80),
            "optimization.max_update": updates,
            "dataset.validate_interval_updates": max(1, updates // 4),
            "dataset.num_workers": 0 if self.options.miniature else 5,
            "checkpoint.save_interval_updates": max(1, updates // 4),
            **({"model.init_from": self.checkpoint(self._init(row)).resolve()} if row.init else {}),
            **row.overrides,
        }
        folder = str(HERE.parent / row.family)
        options = ["--config-dir", folder, "--config-name", row.config]
        return [*options, *(f"{name}={value}" for name, value in overrides.items())]

    def _init(self, row: Row) -> Row:
        return self.table.row(row.init, row.seed)

    def train(self, row: Row, gpu: str) -> bool:
        """Train a row to its end, or until it is stopped; it resumes from its last checkpoint."""
        if self.is_trained(row):
            return True
        start = time.monotonic()
        environment = {"CUDA_VISIBLE_DEVICES": gpu, "OMP_NUM_THREADS": "2"}
        status = self.call([*TRAIN, *self.train_command(row)], self._log(row.id), environment)
        seconds = time.monotonic() - start
        spent = self.options.work / "runs" / row.id / "seconds"
        earlier = float(spent.read_text()) if spent.exists() else 0.0
        if spent.parent.exists():
            spent.write_text(str(earlier + seconds))
        if status or not self.checkpoint(row).exists() or self._stopped():
            return False
        with atomic_path(self._stamp(row)) as temporary:
            about = {"digest": self.digests[row.id], "seconds": earlier + seconds}
            temporary.write_text(json.dumps(about))
        return True

    def judge(self, row: Row, gpu: str) -> None:
        """Probe a row on every task, and write its result."""
        encoder = row.encoder or str(
            self.checkpoint(row if row.family else self.table.needs(row)[0])
        )
        encoder = f"random:{encoder}" if row.random else encoder
        out = self.options.work / "judge" / row.id
        groups = MINIATURE_TASKS if self.options.miniature else TASK_GROUPS
        small = ["--small", "--cpu"] if self.options.miniature else []
        command = [
            sys.executable,
            str(HERE.parent / "open_tasks/judge.py"),
            encoder,
            "--out",
            str(out),
        ]
        command += ["--data", str(self.options.judge), *small]
        environment = {"CUDA_VISIBLE_DEVICES": gpu, "OMP_NUM_THREADS": "3"}
        start = time.monotonic()
        with self.slots, ThreadPoolExecutor(len(groups)) as pool:
            calls = [
                pool.submit(
                    self.call, [*command, "--tasks", g], self._log(f"judge-{row.id}"), environment
                )
                for g in groups
            ]
            if any(call.result() for call in calls):
                raise InputError(f"{row.id} was not judged: see {self._log(f'judge-{row.id}')}")
        form = "small" if small else "full"
        found = self._about(row, time.monotonic() - start)
        run = self.options.work / "runs" / row.id if row.family else None
        results.write(self.options.results, row.id, found, out / form / "probes", run)
        shutil.rmtree(out / "feature_cache", ignore_errors=True)  # gigabytes per encoder
        print(f"{row.id}: done at {time.monotonic() - self.began:.0f} s", flush=True)

    def _about(self, row: Row, judge_seconds: float) -> dict[str, Any]:
        found = {**asdict(row), "digest": self.digests[row.id], "device": device()}
        if self.options.miniature:
            found["miniature"] = True
        if row.family:
            seconds = read_object(self._stamp(row))["seconds"]
            command = ["fairseq-hydra-train", *self.train_command(row)]
            work = str(self.options.work.resolve())
            found["command"] = (
                shlex.join(command).replace(work, "WORK").replace(str(HERE.parent), "examples")
            )
            found["updates"], found["wall_seconds"] = row.updates(), round(seconds, 1)
            found["streams"] = self.options.streams
            found["gpu_seconds"] = round(seconds / self.options.streams, 1)
        return {**found, "judge_seconds": round(judge_seconds, 1)}

    # Which row when

    def remaining(self) -> float:
        limit = self.options.time_limit
        return float("inf") if limit is None else limit - (time.monotonic() - self.began)

    def _stopped(self) -> bool:
        return self.remaining() < STOP_SECONDS

    def expected(self, row: Row) -> float:
        """Seconds until the row is judged, by what rows here took, or AUDIO_PER_SECOND."""
        if not row.family:
            return JUDGE_SECONDS
        if self.is_trained(row):
            return JUDGE_SECONDS
        rate = self.trained.get(row.family, AUDIO_PER_SECOND[row.family] / self.options.streams)
        spent = self.options.work / "runs" / row.id / "seconds"
        done = float(spent.read_text()) if spent.exists() else 0.0
        return START_SECONDS + max(0.0, row.audio_seconds / rate - done) + JUDGE_SECONDS

    def _fits(self, row: Row) -> bool:
        """Whether it ends in time; what no call has time for starts early, and is resumed."""
        limit = self.options.time_limit
        if limit is None or self.options.miniature:
            return not self._stopped()
        needed = self.expected(row)
        return needed <= self.remaining() or (needed > limit - 60 and self.remaining() > limit / 2)

    def _ready(self, row: Row) -> bool:
        if any(not self.is_trained(other) for other in self.table.needs(row)):
            return False
        for name in row.labels:
            job = self.label_jobs.get((row.corpus, name))
            if job is None or not job.done() or not job.result():
                return False
        return True

    def _hopeless(self, row: Row) -> bool:
        jobs = [self.label_jobs.get((row.corpus, name)) for name in row.labels]
        if any(job is not None and job.done() and not job.result() for job in jobs):
            return True
        return any(other.id in self.failed for other in self.table.needs(row))

    def _next(self, queue: list[Row], labeller: ThreadPoolExecutor) -> Row | None:
        """Take the first row that can start and fits; None if none will."""
        with self.condition:
            while queue and not self._stopped():
                for row in [row for row in queue if self._hopeless(row)]:
                    self.failed.add(row.id)
                    queue.remove(row)
                    print(
                        f"{row.id}: what it needs has failed; see {self.options.work}/logs",
                        flush=True,
                    )
                self._start_labels(queue, labeller)
                ready = [row for row in queue if self._ready(row)]
                fitting = [row for row in ready if self._fits(row)]
                if fitting:
                    queue.remove(fitting[0])
                    self.running.add(fitting[0].id)
                    return fitting[0]
                if len(ready) == len(queue):
                    return None
                self.condition.wait(2.0)
        return None

    def _start_labels(self, queue: Sequence[Row], labeller: ThreadPoolExecutor) -> None:
        workers = max(1, self.options.workers // 4)
        for row in queue:
            for name in row.labels:
                about, key = self.table.labels[name], (row.corpus, name)
                source = about.get("checkpoint")
                waits = source and not self.is_trained(self.table.row(source, 0))
                if key not in self.label_jobs and not waits:
                    self.label_jobs[key] = labeller.submit(self._label, *key, workers)

    def _stream(
        self,
        gpu: str,
        queue: list[Row],
        labeller: ThreadPoolExecutor,
        judges: ThreadPoolExecutor,
        judged: list[Future],
    ) -> None:
        while (row := self._next(queue, labeller)) is not None:
            start = time.monotonic()
            fresh = bool(row.family) and not self._stamp(row).exists()
            ended = not row.family or self.train(row, gpu)
            with self.condition:
                self.running.discard(row.id)
                if ended and fresh:
                    self.trained[row.family] = row.audio_seconds / (time.monotonic() - start)
                elif not ended and not self._stopped():
                    self.failed.add(row.id)
                    print(f"{row.id}: training failed; see {self._log(row.id)}", flush=True)
                self.condition.notify_all()
            done = results.is_done(self.options.results, row.id, self.digests[row.id])
            if ended and not done and not self._stopped():
                judged.append(judges.submit(self.judge, row, gpu))

    def run(self) -> bool:
        """Do all that is to do in the time there is; return whether every wanted row is done."""
        rows = self.wanted()
        queue = self.prepare(rows)
        gpus = list(self.options.gpus) or [""]
        judged: list[Future] = []
        watch = threading.Thread(target=self._watch, daemon=True)
        watch.start()
        with ThreadPoolExecutor(4) as labeller, ThreadPoolExecutor(64) as judges:
            streams = [
                threading.Thread(target=self._stream, args=(gpu, queue, labeller, judges, judged))
                for _ in range(self.options.streams)
                for gpu in gpus
            ]
            for stream in streams:
                stream.start()
            for stream in streams:
                stream.join()
        for job in judged:
            if error := job.exception():
                print(f"error: {error}", file=sys.stderr, flush=True)
        left = [
            r.id
            for r in rows
            if not results.is_done(self.options.results, r.id, self.digests[r.id])
        ]
        print(
            f"{len(rows) - len(left)} of {len(rows)} rows are done; left: "
            + (", ".join(left) or "none")
        )
        return not left

    def _watch(self) -> None:
        while not self._stopped():
            time.sleep(1)
        if isinstance(self.call, Processes):
            self.call.stop()


def _manifest_digest(folder: Path) -> str:
    """Digest of tracks' names without suffixes, and lengths: FLAC and Opus copies are alike."""
    lines = []
    for split in ("train", "valid"):
        for line in (
            (folder / f"{split}.tsv").read_text("utf-8", "surrogateescape").splitlines()[1:]
        ):
            name, length = line.split("\t")
            lines.append(f"{split} {os.path.splitext(name)[0]} {length}")
    return hashlib.sha256("\n".join(sorted(lines)).encode("utf-8", "surrogateescape")).hexdigest()[
        :16
    ]


def device() -> str:
    """Name of the GPU, or `cpu`."""
    import torch

    return torch.cuda.get_device_name(0) if torch.cuda.is_available() else "cpu"


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
    add("--streams", type=int, default=1, help="rows side by side per GPU (default: 1)")
    add("--judges", type=int, default=2, help="rows judged side by side (default: 2)")
    add(
        "--time-limit",
        type=float,
        metavar="SECONDS",
        help="start nothing that would not end in time",
    )
    add("--workers", type=int, default=available_cpus(), help="processes (default: one per core)")
    add("--miniature", action="store_true", help="tiny models and few tasks, for two CPU cores")
    return parser


def run(arguments: argparse.Namespace) -> bool:
    """Run a study as the command line says; see `Study.run`."""
    from torch.cuda import device_count

    if min(arguments.streams, arguments.judges, arguments.workers) < 1:
        raise InputError("--streams, --judges and --workers must be at least 1")
    given = {"music": arguments.music, "speech": arguments.speech}
    try:
        seeds = [int(seed) for seed in arguments.seeds.split(",") if seed]
    except ValueError:
        raise InputError(f"--seeds {arguments.seeds}: numbers, separated by commas") from None
    options = Options(
        work=arguments.work,
        results=arguments.results,
        judge=arguments.judge,
        corpora={name: folder for name, folder in given.items() if folder},
        table=arguments.table,
        names=[name for name in arguments.rows.split(",") if name],
        seeds=seeds,
        streams=arguments.streams,
        judges=arguments.judges,
        time_limit=arguments.time_limit,
        workers=arguments.workers,
        gpus=[] if arguments.miniature else [str(i) for i in range(device_count())],
        miniature=arguments.miniature,
    )
    return Study(options).run()


def main(argv: Sequence[str] | None = None) -> int:
    arguments = get_parser().parse_args(argv)
    return exit_status(lambda: run(arguments), arguments.work)


if __name__ == "__main__":
    sys.exit(main())
