"""Which row when: several side by side per GPU, each judged while the next one trains."""

import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import results
from processes import Processes, last_words
from rows import Row
from steps import Steps, device

from music_ssl_fairseq.errors import InputError, one_line

AUDIO_PER_SECOND = {"music_hubert": 9000.0, "music2vec": 4000.0}
"""Audio-seconds per second of one GPU, as long as no row has been measured (docs/study.md)."""
JUDGE_SECONDS, START_SECONDS, STOP_SECONDS = 150.0, 45.0, 25.0
WORTH_STARTING = 2 * START_SECONDS + STOP_SECONDS


class Study:
    """A study in progress.

    Args:
        gpus: as CUDA_VISIBLE_DEVICES takes them; empty for the CPU.
        streams: rows side by side per GPU.
        judges: rows judged side by side.
        time_limit: seconds until everything must have ended.
    """

    def __init__(
        self,
        steps: Steps,
        gpus: Sequence[str] = (),
        streams: int = 1,
        judges: int = 2,
        time_limit: float | None = None,
    ) -> None:
        self.steps, self.places, self.table = steps, steps.places, steps.table
        self.gpus, self.streams = list(gpus) or [""], streams
        self.end = float("inf") if time_limit is None else time.monotonic() + time_limit
        self.began = time.monotonic()
        self.condition = threading.Condition()
        self.stopping = threading.Event()
        self.slots = threading.Semaphore(judges)
        self.queue: list[Row] = []
        self.failed: dict[str, str] = {}  # why, by row
        self.label_jobs: dict[tuple[str, str], Future[bool]] = {}
        self.rates = dict(AUDIO_PER_SECOND)

    def wanted(self, names: Sequence[str] = (), seeds: Sequence[int] = ()) -> list[Row]:
        """Choose rows of these names and seeds, or all; first seeds first.

        Raises:
            InputError: if there is no row of a name, or none of the seeds.
        """
        known = dict.fromkeys(row.name for row in self.table.rows)
        for name in names:
            if name not in known:
                raise InputError(
                    f"--rows {name}: no such row in the table; it has {', '.join(known)}"
                )
        chosen = [
            row
            for row in self.table.rows
            if (not names or row.name in names)
            and (not seeds or not row.trained or row.seed in seeds)
        ]
        if not chosen:
            given = ",".join(map(str, seeds))
            raise InputError(f"--seeds {given}: the table gives none of these rows such a seed")
        return sorted(chosen, key=lambda row: row.seed)

    def run(self, rows: Sequence[Row]) -> bool:
        """Do what there is time for; return whether every one of the rows is done."""
        self._prepare(rows)
        if left := self._left(rows):
            self._say(f"rows to do: {len(left)}; {self._time_for(left)}")
        threading.Thread(target=self._watch, daemon=True).start()
        with ThreadPoolExecutor(4) as labeler, ThreadPoolExecutor(64) as judges:
            streams = [
                threading.Thread(target=self._stream, args=(gpu, labeler, judges))
                for _ in range(self.streams)
                for gpu in self.gpus
            ]
            for stream in streams:
                stream.start()
            for stream in streams:
                stream.join()
        return self._summary(rows)

    def stop(self) -> None:
        """Stop all that runs, with checkpoints; the same command continues."""
        self.stopping.set()
        if isinstance(self.steps.call, Processes):
            self.steps.call.stop()

    # Before and after

    def _prepare(self, rows: Sequence[Row]) -> None:
        """List corpora; queue what is not done, each row after those whose weights it needs."""
        everything = [x for row in rows for x in (*self.table.ancestors(row), row)]
        for corpus in sorted({row.corpus for row in everything if row.corpus}):
            self.steps.make_manifests(corpus)
        todo: dict[str, Row] = {}
        others: list[str] = []
        for row in rows:
            if not self.places.is_done(row):
                todo |= {x.id: x for x in (*self._to_train_before(row), row)}
            elif not results.has_sound_of(self.places.judge, self.places.results, row.id):
                others.append(row.id)
        self.queue = list(todo.values())
        if others:
            self._say(f"accepted, judged on clips of other or unknown sound: {', '.join(others)}")
        for family, rate in results.rates(self.places.results, device()).items():
            self.rates[family] = rate

    def _to_train_before(self, row: Row) -> Iterator[Row]:
        """Return rows that must be trained here for this one, whether judged or not."""
        if self.steps.is_trained(row):
            return
        init = [self.table.row(row.init, row.seed)] if row.init else []
        deep = [source for name in row.labels if (source := self._label_source(row.corpus, name))]
        for other in (*init, *deep):
            yield from self._to_train_before(other)
            yield other

    def _label_source(self, corpus: str, name: str) -> Row | None:
        """Return the row whose checkpoint a label set still takes."""
        kept = self.places.kept_labels(corpus, name).exists()
        return None if kept else self.table.source_of(name)

    def _left(self, rows: Sequence[Row]) -> list[Row]:
        return [row for row in rows if not self.places.is_done(row)]

    def _time_for(self, rows: Sequence[Row]) -> str:
        width = len(self.gpus) * self.streams
        times = [self._expected(row) for row in rows]
        seconds = max(sum(times) / width, max(times))
        return f"about {seconds / 60:.0f} min, {width} side by side"

    def _summary(self, rows: Sequence[Row]) -> bool:
        left = self._left(rows)
        for row in left:
            if row.id in self.failed:
                print(f"{row.id}: failed: {self.failed[row.id]}")
            else:
                spent = self.steps.spent(row)["wall_seconds"]
                state = "trained" if self.steps.is_trained(row) else f"trained for {spent:.0f} s"
                print(f"{row.id}: {state if row.family and spent else 'not begun'}")
        print(f"rows done: {len(rows) - len(left)} of {len(rows)}, left: {len(left)}", end="")
        print(f" ({self._time_for(left)}); the same command continues" if left else "")
        return not left

    def _say(self, text: str) -> None:
        print(f"{time.monotonic() - self.began:6.0f} s  {text}", flush=True)

    # Time

    def _remaining(self) -> float:
        return self.end - time.monotonic()

    def _over(self) -> bool:
        return self.stopping.is_set() or self._remaining() < STOP_SECONDS

    def _watch(self) -> None:
        while not self._over():
            time.sleep(0.5)
        self.stop()

    def _expected(self, row: Row) -> float:
        """Estimate the seconds until the row is judged."""
        if not row.family or self.steps.is_trained(row):
            return JUDGE_SECONDS
        training = row.audio_seconds / (self.rates[row.family] / self.streams)
        left = max(0.0, training - self.steps.spent(row)["wall_seconds"])
        return START_SECONDS + left + JUDGE_SECONDS

    # Which row when

    def _next(self, labeler: ThreadPoolExecutor) -> Row | None:
        """Take the next row that can start; None if none will.

        Rows that end in time come first, and among them those that need weights which are here:
        another machine would have to make them again. Whatever else there is time for is begun.
        """
        with self.condition:
            while self.queue and not self._over():
                for row in [row for row in self.queue if self._cannot(row)]:
                    self.queue.remove(row)
                self._start_labels(labeler)
                ready = [row for row in self.queue if self._ready(row)]
                left = self._remaining()
                fit = [row for row in ready if self._expected(row) <= left]
                begun = ready if left > WORTH_STARTING else []
                order = sorted(fit, key=lambda row: not self.table.needs(row)) or begun
                if order:
                    self.queue.remove(order[0])
                    return order[0]
                if len(ready) == len(self.queue):
                    return None
                self.condition.wait(2.0)
        return None

    def _ready(self, row: Row) -> bool:
        if self.steps.is_trained(row):
            return True
        if row.init and not self.steps.is_trained(self.table.row(row.init, row.seed)):
            return False
        jobs = [self.label_jobs.get((row.corpus, name)) for name in row.labels]
        return all(job is not None and job.done() and job.result() for job in jobs)

    def _cannot(self, row: Row) -> bool:
        """Tell whether something that it needs has failed, which is then its own failure."""
        if self.steps.is_trained(row):
            return False
        for name in row.labels:
            job = self.label_jobs.get((row.corpus, name))
            if job is not None and job.done() and not job.result():
                self.failed[row.id] = last_words(self.places.log(f"labels-{row.corpus}-{name}"))
        for other in self._to_train_before(row):
            if other.id in self.failed:
                self.failed[row.id] = self.failed[other.id]
        return row.id in self.failed

    def _start_labels(self, labeler: ThreadPoolExecutor) -> None:
        workers = max(1, self.steps.workers // 4)
        for row in self.queue:
            for name in row.labels:
                key, source = (row.corpus, name), self._label_source(row.corpus, name)
                waits = source is not None and not self.steps.is_trained(source)
                if key not in self.label_jobs and not waits and not self.steps.is_trained(row):
                    self.label_jobs[key] = labeler.submit(
                        self.steps.label, row.corpus, name, workers
                    )
                    self.label_jobs[key].add_done_callback(self._wake)

    def _wake(self, _job: Future[bool]) -> None:
        with self.condition:
            self.condition.notify_all()

    def _stream(self, gpu: str, labeler: ThreadPoolExecutor, judges: ThreadPoolExecutor) -> None:
        while (row := self._next(labeler)) is not None:
            ended = not row.family or self.steps.train(row, gpu)
            if row.family and not self._over():
                self._say(f"{row.id}: {'trained' if ended else 'training failed'}")
            with self.condition:
                if ended and row.trained:
                    seconds = self.steps.spent(row)["wall_seconds"]
                    self.rates[row.family] = row.audio_seconds / seconds * self.streams
                elif not ended and not self._over():
                    self.failed[row.id] = last_words(self.places.log(row.id))
                self.condition.notify_all()
            if ended and not self._over() and not self.places.is_done(row):
                judges.submit(self._judge, row, gpu)

    def _judge(self, row: Row, gpu: str) -> None:
        with self.slots:
            if self._over():
                return
            try:
                done, why = self.steps.judge(row, gpu), ""
            except (InputError, OSError) as error:
                done, why = False, one_line(str(error))
            except Exception as error:  # the pool of threads would keep it to itself
                done, why = False, one_line(repr(error))
        if done or not self._over():
            self._say(f"{row.id}: {'done' if done else 'not judged'}")
        if not done and not self._over():
            self.failed[row.id] = why or last_words(self.places.log(f"judge-{row.id}"))
