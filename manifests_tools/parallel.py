"""Apply a function to many files, in worker processes, with a progress bar."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import TypeVar

from tqdm import tqdm

from music_ssl_fairseq.jobs.pool import WorkerPool, ordered

Item = TypeVar("Item")
Result = TypeVar("Result")

_GROUPS_PER_WORKER = 16  # at least, so that small inputs are spread over the workers as well


def parallel_map(
    function: Callable[[Item], Result],
    items: Sequence[Item],
    workers: int,
    description: str,
    chunk: int = 16,
) -> Iterator[Result]:
    """Yield `function(item)` for each item, in the order of `items`; see `jobs.pool.ordered`.

    libsndfile keeps the reason of a failed open in one variable for all threads, hence processes.

    Args:
        function: picklable, as are its results.
        workers: processes; 1 means this one.

    Raises:
        InputError: if a worker is killed, by the system or by a crash in a decoder.
    """
    workers = min(workers, len(items))
    size = max(1, min(chunk, len(items) // (_GROUPS_PER_WORKER * workers))) if workers > 1 else 1
    groups = (items[start : start + size] for start in range(0, len(items), size))
    advice = "--workers 1 shows after how many files"
    pool = WorkerPool(workers if workers > 1 else 0, fork=True, advice=advice)
    with tqdm(desc=description, total=len(items), unit=" files") as bar:
        for results in ordered(partial(_apply, function), groups, pool):
            for result in results:
                bar.update()
                yield result


def _apply(function: Callable[[Item], Result], items: Sequence[Item]) -> list[Result]:
    return [function(item) for item in items]
