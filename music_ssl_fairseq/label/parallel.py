"""One job over many tracks, in worker processes, with results in order."""

import contextlib
import multiprocessing
import os
import queue
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing import forkserver
from typing import Any, TypeVar

from music_ssl_fairseq.errors import InputError

Item = TypeVar("Item")
Result = TypeVar("Result")

_TRACKS_OF_A_GPU = 32
_AHEAD = 16  # items a worker that may be started before the oldest one is done
_AHEAD_OF_A_GPU = 48
_PATIENCE = 1.0  # seconds without a result after which workers are looked after
_THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")

_job: Any
_queues: tuple[Any, ...]


@dataclass(frozen=True)
class Crew:
    """Who does the work.

    Attributes:
        workers: processes.
        devices: GPUs, as torch names them, one for each worker; none if they are to use the CPU.
    """

    workers: int
    devices: tuple[str, ...] = ()

    @property
    def together(self) -> int:
        """Tracks to hand to a worker at once: a GPU is done with one in milliseconds."""
        return _TRACKS_OF_A_GPU if self.devices else 1


def ordered(job: Callable[[Item], Result], items: Iterable[Item], crew: Crew) -> Iterator[Result]:
    """Yield `job(item)` for each item, in the items' order.

    Workers are always processes of one thread each, even a single one, so that every number is
    computed the same way however many there are. They are not forked from this process, which may
    hang once faiss or another user of OpenMP has run in it, but from a server that has imported
    what they need and nothing else.

    Args:
        job: sent to each worker once, so it may hold arrays. Defined in an importable module; its
            `modules`, if it has any, are names of others that it imports as it works. If
            the crew has GPUs, a worker does `job.on(device)` with its own, and of that
            `stream(items)`, which yields the results of items in order.
        items: taken as they are needed; small things, sent one by one.

    Raises:
        InputError: if a worker is killed, as the system does when memory runs out. What `job`
            raises is raised here when that item's turn comes, after all earlier results.
    """
    if crew.devices:
        yield from _served(job, items, crew)
        return
    pending: deque[Future[Result]] = deque()
    with _workers(job, crew) as executor:
        for item in items:
            pending.append(executor.submit(_run, item))
            if len(pending) == _AHEAD * crew.workers:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()


def _served(job: Any, items: Iterable[Any], crew: Crew) -> Iterator[Any]:
    """`ordered` for GPUs: each worker does `job.stream`, and so knows items before their turn."""
    waiting = enumerate(items)
    tasks, results = _context().Queue(), _context().Queue()
    with _workers(job, crew, tasks, results) as executor:
        serving = [executor.submit(_serve) for _ in crew.devices]
        sent = given = 0
        done: dict[int, Any] = {}
        more = True
        while more or given < sent:
            while more and sent < given + _AHEAD_OF_A_GPU * crew.workers:
                task = next(waiting, None)
                more = task is not None
                if more:
                    tasks.put(task)
                    sent += 1
                else:
                    for _ in crew.devices:
                        tasks.put(None)
            if given in done:
                yield done.pop(given)
                given += 1
            elif given < sent:
                done.update([_result(results, serving)])


def _result(results: Any, serving: list[Future[None]]) -> tuple[int, Any]:
    """The next that arrives, with its number; raises what a worker has raised."""
    while True:
        with contextlib.suppress(queue.Empty):
            return results.get(timeout=_PATIENCE)
        for future in serving:
            if future.done():
                future.result()


@contextlib.contextmanager
def _workers(job: Any, crew: Crew, *queues: Any) -> Iterator[ProcessPoolExecutor]:
    others = multiprocessing.active_children()
    start_server([type(job).__module__, *getattr(job, "modules", [])])
    context = _context()
    devices = context.SimpleQueue()
    for device in crew.devices:
        devices.put(device)
    adopt = (job, devices if crew.devices else None, *queues)
    with _one_thread(), ProcessPoolExecutor(crew.workers, context, _adopt, adopt) as executor:
        try:
            yield executor
        except BrokenProcessPool:
            raise InputError(
                "a worker process was killed, most likely because memory ran out; "
                "the same command continues where it stopped, with fewer --workers"
            ) from None
        except BaseException:
            # Nobody waits for what is being worked on, which may take as long as a track is long.
            executor.shutdown(wait=False, cancel_futures=True)
            ours = [p for p in multiprocessing.active_children() if p not in others]
            for process in ours:
                process.terminate()
            for process in ours:
                process.join()
            raise


def start_server(modules: list[str]) -> None:
    """Start the process that workers are forked from, unless it is there.

    It imports what they need once, of models' features for seconds, while this one does the same.
    """
    _context().set_forkserver_preload(["scipy.signal", *modules])
    with _one_thread():
        forkserver.ensure_running()


def _context() -> Any:
    return multiprocessing.get_context("forkserver")


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    """Processes started meanwhile get one thread; numerical libraries read this as they load."""
    before = {name: os.environ.get(name) for name in _THREADS}
    os.environ.update(dict.fromkeys(_THREADS, "1"))
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _adopt(job: Any, devices: Any, *queues: Any) -> None:
    global _job, _queues
    _job, _queues = job if devices is None else job.on(devices.get()), queues
    # Ctrl-C reaches every process of the terminal; the parent decides.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    # A worker of a killed parent would wait for items for ever: it holds its own queue open.
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _run(item: Any) -> Any:
    return _job(item)


def _serve() -> None:
    tasks, results = _queues
    numbers: deque[int] = deque()

    def items() -> Iterator[Any]:
        while (task := tasks.get()) is not None:
            numbers.append(task[0])
            yield task[1]

    for result in _job.stream(items()):
        results.put((numbers.popleft(), result))
