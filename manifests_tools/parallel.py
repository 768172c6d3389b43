"""One function over many items, in several processes, with a progress bar."""

import multiprocessing
import multiprocessing.connection
import os
import signal
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from itertools import chain
from types import FrameType
from typing import Any, TypeVar

from tqdm import tqdm

from music_ssl_fairseq.errors import InputError

Item = TypeVar("Item")
Result = TypeVar("Result")

_SECONDS_TO_LEAVE = 5.0


def parallel_map(
    function: Callable[[Item], Result],
    items: Sequence[Item],
    workers: int,
    description: str,
    chunk: int = 16,
) -> Iterator[Result]:
    """Yield `function(item)` for each item, in the order of `items`.

    Processes, not threads: libsndfile keeps the reason why a file failed to open in one variable
    for all threads. They are forked where that exists, so callers need no `__main__` guard. When
    the caller is interrupted, or stops early, the workers end too, and what they hold open for
    writing is cleaned up.

    Args:
        function: picklable, as are its results.
        workers: processes; with 1 all is done in this one.
        chunk: items a worker takes at a time.

    Raises:
        InputError: if a worker is killed, by the system or by a crash in a decoder.
    """
    workers = min(workers, len(items))
    if workers <= 1:
        yield from tqdm(map(function, items), description, len(items), unit=" files")
        return
    fork = "fork" in multiprocessing.get_all_start_methods()
    context = multiprocessing.get_context("fork" if fork else None)
    others = multiprocessing.active_children()
    executor = ProcessPoolExecutor(workers, context, _prepare_worker)
    try:
        results = _in_order(executor, function, items, chunk, ahead=16 * workers)
        yield from tqdm(results, description, len(items), unit=" files")
    except BrokenProcessPool:
        raise InputError(
            "a worker process died: memory ran out, or a file crashes the decoder; "
            "--workers 1 shows after how many files"
        ) from None
    except BaseException:
        _end([process for process in multiprocessing.active_children() if process not in others])
        raise
    finally:
        executor.shutdown(wait=True, cancel_futures=True)


def _end(processes: list[Any]) -> None:
    """Ask workers to clean up and leave; kill those that have not after a few seconds.

    One that is asked at the moment when it takes the lock of the queue for results can leave that
    lock behind, and then the others wait for it for ever.
    """
    for process in processes:
        process.terminate()
    deadline = time.monotonic() + _SECONDS_TO_LEAVE
    waiting = {process.sentinel: process for process in processes}
    while waiting and (left := deadline - time.monotonic()) > 0:
        for sentinel in multiprocessing.connection.wait(list(waiting), left):
            del waiting[sentinel]
    for process in waiting.values():
        process.kill()


def _in_order(
    executor: Executor,
    function: Callable[[Item], Result],
    items: Sequence[Item],
    chunk: int,
    ahead: int,
) -> Iterator[Result]:
    """Results in order. At most `ahead` chunks are queued, so memory does not grow with items."""
    # Small inputs are spread over the workers as well.
    chunk = max(1, min(chunk, len(items) // ahead))
    pending: deque[Future[list[Result]]] = deque()
    for start in range(0, len(items), chunk):
        pending.append(executor.submit(_apply, function, items[start : start + chunk]))
        if len(pending) >= ahead:
            yield from pending.popleft().result()
    yield from chain.from_iterable(future.result() for future in pending)


def _apply(function: Callable[[Item], Result], items: Sequence[Item]) -> list[Result]:
    try:
        return [function(item) for item in items]
    except SystemExit:
        # The executor would hand it to the parent as a result and take the next chunk.
        os._exit(1)


def _prepare_worker() -> None:
    # Ctrl-C reaches every process of the terminal: the parent decides, and ends the workers.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, _exit)
    threading.Thread(target=_follow_parent, daemon=True).start()


def _exit(signum: int, frame: FrameType | None) -> None:
    sys.exit(1)


def _follow_parent() -> None:
    """End this worker when its parent is gone, even if killed: it would wait for work for ever."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        main = threading.main_thread().ident
        assert main is not None
        signal.pthread_kill(main, signal.SIGTERM)
