"""Apply a function to items in threads that stay ahead of the consumer."""

import contextlib
import queue
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Generic, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


class ReadAhead(Generic[Item, Result]):
    """Results of `function(item)` in the items' order, computed by threads ahead of their use.

    Use it as a context manager, and iterate over it or `take` several results at once. Items may
    come slowly: a thread of its own asks for them, so that results never wait for a later item.

    Args:
        function: called in the threads. What it raises is raised where its result is taken, as is
            what `items` raises.
        threads: how many call it at once.
        depth: items that may be taken before their results are.
    """

    def __init__(
        self, function: Callable[[Item], Result], items: Iterable[Item], threads: int, depth: int
    ):
        self._function = function
        self._items = items
        # None at the end.
        self._arriving: queue.SimpleQueue[Future[Result] | None] = queue.SimpleQueue()
        self._error: BaseException | None = None
        self._room = threading.Semaphore(depth)
        self._stopped = self._ended = False
        self._executor = ThreadPoolExecutor(threads)
        threading.Thread(target=self._submit, daemon=True).start()

    def __enter__(self) -> "ReadAhead[Item, Result]":
        return self

    def __exit__(self, *error: Any) -> None:
        self._stopped = True
        self._room.release()
        self._executor.shutdown(cancel_futures=True)

    def _submit(self) -> None:
        try:
            for item in self._items:
                self._room.acquire()
                if self._stopped:
                    break
                self._arriving.put(self._executor.submit(self._function, item))
            self._arriving.put(None)
        except BaseException as error:
            failed: Future[Result] = Future()
            failed.set_exception(error)
            self._arriving.put(failed)
        finally:
            if hasattr(self._items, "close"):
                self._items.close()

    def __iter__(self) -> Iterator[Result]:
        while results := self.take(1):
            yield results[0]

    def take(self, most: int) -> list[Result]:
        """Return the next results: at most `most`, at least one, or none at the end.

        It waits for the first item, and not for others to arrive.
        """
        results: list[Result] = []
        with contextlib.suppress(queue.Empty):
            while len(results) < most and not self._ended and self._error is None:
                arrived = self._arriving.get(block=not results)
                if arrived is None:
                    self._ended = True
                elif (error := arrived.exception()) is not None:
                    self._error = error
                else:
                    results.append(arrived.result())
                    self._room.release()
        if self._error is not None and not results:
            raise self._error
        return results
