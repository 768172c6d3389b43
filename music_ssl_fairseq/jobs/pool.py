"""Apply work to many items in worker processes, with results in the items' order."""

import contextlib
import multiprocessing
import os
import queue
import signal
import sys
import threading
import time
import traceback
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from multiprocessing import forkserver
from multiprocessing.connection import Connection, wait
from typing import Any

from music_ssl_fairseq.errors import InputError

_ITEMS_PER_GPU_GROUP = 32
_ITEMS_AHEAD = 16  # items per worker that may be started before the oldest one is done
_ITEMS_AHEAD_ON_GPU = 48
_ITEMS_HELD = 2  # items that a worker on a CPU has at once: one waits while the other is done
_HANDLED = (signal.SIGINT, signal.SIGTERM)  # by `_serve`
_SECONDS_TO_LEAVE = 5.0
_THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


@dataclass(frozen=True)
class WorkerPool:
    """Number and place of the processes that do the work."""

    workers: int  # processes; with 0 the work is done in this one
    # GPUs, as torch names them, one per worker; empty for work on the CPU
    devices: tuple[str, ...] = ()
    # Fork workers from this process: they start at once, and the caller needs no `__main__` guard.
    # Without it they come from a server that has imported what the work needs and nothing else: a
    # process in which faiss or another user of OpenMP has run may hang when forked.
    fork: bool = False
    # Advice for the message about a killed worker
    advice: str = "the same command resumes the work, with fewer --workers"

    @property
    def group_size(self) -> int:
        """Items to hand to a worker at once: one takes a GPU milliseconds."""
        return _ITEMS_PER_GPU_GROUP if self.devices else 1


def ordered(work: Any, items: Iterable[Any], pool: WorkerPool) -> Iterator[Any]:
    """Yield `work(item)` for each item, in the items' order.

    Workers are processes of one thread each, even a single one, so that every number is computed
    the same way however many there are. When the caller stops early or is interrupted, the workers
    end too, and what they hold open for writing is cleaned up.

    Raises InputError if a worker is killed, as the system does when memory runs out. What `work`
    raises is raised here when that item's turn comes, after all earlier results.

    Args:
        work: called with an item. It is pickled and sent to each worker once, so it may hold
            arrays. Its `modules`, if any, are names of others that it imports while working. If it
            has `stream(items)`, which yields the results in order, that is called instead, and may
            look at items before their turn. If the pool has GPUs, each worker calls
            `work.on(device)` with its own.
        items: taken when needed; small, because they are sent one by one.
    """
    if not pool.workers:
        yield from _results(work, items)
        return
    held = _ITEMS_AHEAD_ON_GPU if pool.devices else _ITEMS_HELD
    ahead = pool.workers * (_ITEMS_AHEAD_ON_GPU if pool.devices else _ITEMS_AHEAD)
    with _running(work, pool) as workers:
        yield from _exchange(iter(items), workers, held, ahead)


def _results(work: Any, items: Iterable[Any]) -> Iterator[Any]:
    return work.stream(items) if hasattr(work, "stream") else map(work, items)


def _exchange(
    items: Iterator[Any], workers: list["_Worker"], held: int, ahead: int
) -> Iterator[Any]:
    """Hand out items, at most `held` per worker and `ahead` in all; yield results in order."""
    done: dict[int, Any] = {}  # number of an item: its result, which is not due yet
    sent = due = 0  # numbers of the next item to send, and of the next result to yield
    more = True
    while more or due < sent:
        while more and sent < due + ahead:
            worker = min(workers, key=lambda worker: len(worker.numbers))
            if len(worker.numbers) >= held:
                break
            message = next(((item,) for item in items), None)  # a tuple: None ends a worker
            if message is None:
                more = False
                for worker in workers:
                    worker.send(None)
            else:
                worker.send(message, number=sent)
                sent += 1
        if due in done:
            result, error = done.pop(due)
            if error is not None:
                raise error
            due += 1
            yield result
        elif due < sent:
            by_connection = {worker.connection: worker for worker in workers}
            done.update(by_connection[ready].receive() for ready in wait(list(by_connection)))


class _Worker:
    """A worker process, seen from its parent; `numbers` are those of its unfinished items."""

    def __init__(self, work: Any, device: str | None, pool: WorkerPool):
        context: Any = multiprocessing.get_context("fork" if pool.fork else "forkserver")
        self._advice = pool.advice
        self.numbers: deque[int] = deque()
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=_serve, args=(work, device, theirs), daemon=True)
        # Before `_serve`, a signal would run this process's handlers in the copy and could escape.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, _HANDLED)
        try:
            self.process.start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        theirs.close()  # so that the death of the process closes the pipe

    def send(self, message: Any, number: int | None = None) -> None:
        if number is not None:
            self.numbers.append(number)
        with self._alive():
            self.connection.send(message)

    def receive(self) -> tuple[int, Any]:
        """Return the number of the oldest item, and its result and error."""
        with self._alive():
            answer = self.connection.recv()
        if not self.numbers:  # it failed before it had an item
            raise answer[1]
        return self.numbers.popleft(), answer

    @contextlib.contextmanager
    def _alive(self) -> Iterator[None]:
        try:
            yield
        except (EOFError, BrokenPipeError, ConnectionResetError):
            raise InputError(
                "a worker process was killed: memory ran out, or a file crashes its decoder; "
                f"{self._advice}"
            ) from None


@contextlib.contextmanager
def _running(work: Any, pool: WorkerPool) -> Iterator[list[_Worker]]:
    if not pool.fork:
        start_server([type(work).__module__, *getattr(work, "modules", [])])
    workers: list[_Worker] = []
    try:
        for number in range(pool.workers):
            device = pool.devices[number] if pool.devices else None
            workers.append(_Worker(work, device, pool))
        yield workers
    finally:
        _end_workers([worker.process for worker in workers])


def _end_workers(processes: list[Any]) -> None:
    """Ask workers to clean up and end; after a few seconds, kill the others."""
    for process in processes:
        process.terminate()
    deadline = time.monotonic() + _SECONDS_TO_LEAVE
    for process in processes:
        process.join(max(0.0, deadline - time.monotonic()))
        process.kill()
        process.join()


def start_server(modules: list[str]) -> None:
    """Start the process that workers are forked from, unless it is there.

    It imports `modules` once, which takes seconds for models, while this process does the same.
    """
    multiprocessing.get_context("forkserver").set_forkserver_preload(["scipy.signal", *modules])
    before = {name: os.environ.get(name) for name in _THREADS}
    # Numerical libraries read this as they load.
    os.environ.update(dict.fromkeys(_THREADS, "1"))
    in_main = threading.current_thread() is threading.main_thread()
    # Inherited, so that Ctrl-C does not end the server with a traceback while it imports.
    handler = signal.signal(signal.SIGINT, signal.SIG_IGN) if in_main else None
    try:
        forkserver.ensure_running()
    finally:
        if in_main:
            signal.signal(signal.SIGINT, handler)
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _serve(work: Any, device: str | None, connection: Connection) -> None:
    """Answer the parent's items until it ends this process."""
    # Ctrl-C reaches every process of the terminal: the parent decides, and ends the workers.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _HANDLED)
    if "torch" in sys.modules:  # forked with the parent's number of threads
        sys.modules["torch"].set_num_threads(1)
    arriving: queue.SimpleQueue[Any] = queue.SimpleQueue()
    threading.Thread(target=_receive, args=(connection, arriving), daemon=True).start()
    try:
        items = (item for (item,) in iter(arriving.get, None))
        for result in _results(work if device is None else work.on(device), items):
            _answer(connection, (result, None))
    except Exception as error:
        error.add_note(f"In a worker process:\n{traceback.format_exc()}")
        try:
            _answer(connection, (None, error))
        except Exception:  # not every exception can be pickled
            _answer(connection, (None, RuntimeError(traceback.format_exc())))
    # Results in shared memory are there for as long as this process is.
    threading.Event().wait()


def _answer(connection: Connection, answer: tuple[Any, Exception | None]) -> None:
    """Send the parent an answer; end this process if there is no parent any more."""
    try:
        connection.send(answer)
    except (BrokenPipeError, ConnectionResetError):
        sys.exit(1)


def _receive(connection: Connection, arriving: "queue.SimpleQueue[Any]") -> None:
    """Take items as they come, so that the parent never waits; end this process with its parent."""
    parent = multiprocessing.parent_process()
    main = threading.main_thread().ident
    assert parent is not None
    assert main is not None
    with contextlib.suppress(EOFError, OSError):
        while connection in wait([connection, parent.sentinel]):
            arriving.put(connection.recv())
    signal.pthread_kill(main, signal.SIGTERM)
