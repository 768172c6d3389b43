"""Batches of one epoch after another from one data loader, read ahead across the ends of epochs.

fairseq begins to read an epoch once the one before has ended: with 27 updates per epoch, training
then waits for data every second or two.
"""

import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from fairseq.data.iterators import BufferedIterator, CountingIterator

Plan = list[Any]
"""This process's batches of an epoch, as indices. A batch is empty where they have run out."""


class Plans:
    """The plan of each epoch, made at its first use, in any thread."""

    def __init__(self, make: Callable[[int], Plan]):
        self._make = make
        self._plans: dict[int, Plan] = {}
        self._lock = threading.Lock()

    def __getitem__(self, epoch: int) -> Plan:
        with self._lock:
            if epoch not in self._plans:
                self._plans[epoch] = self._make(epoch)
            return self._plans[epoch]

    def forget_before(self, epoch: int) -> None:
        with self._lock:
            self._plans = {e: plan for e, plan in self._plans.items() if e >= epoch}


class _Items(torch.utils.data.Dataset):
    """Maps an epoch and an index to the dataset's item."""

    def __init__(self, dataset: Any):
        self._dataset = dataset

    def __getitem__(self, place: tuple[int, int]) -> Any:
        epoch, index = place
        return self._dataset.item(index, epoch)


def _places(plans: Plans, epoch: int, first: int) -> Iterator[list[tuple[int, int]]]:
    """Yield each batch from a position on, as (epoch, index), without end: a loader's sampler."""
    while True:
        for batch in plans[epoch][first:]:
            yield [(epoch, int(index)) for index in batch]
        epoch, first = epoch + 1, 0


class Stream:
    """Batches from a position on, in the order of their epochs."""

    def __init__(
        self,
        dataset: Any,
        plans: Plans,
        position: tuple[int, int],
        buffer_size: int,
        **loading: Any,
    ):
        """Make a stream; reading begins with the first batch, or with `begin`.

        Args:
            dataset: has `item(index, epoch)`.
            buffer_size: batches that are kept ready, beside the workers' own.
            loading: arguments of torch's DataLoader.
        """
        self.position = position  # epoch and batch that comes next
        self.plans = plans  # the epochs' batches
        # Its workers stay for all epochs
        self.loader = torch.utils.data.DataLoader(
            _Items(dataset), batch_sampler=_places(plans, *position), **loading
        )
        self._buffer_size = buffer_size
        self._source: Any = None

    def begin(self) -> None:
        """Begin to read.

        Workers are forked here, in the caller's thread. fairseq forks them in the buffer's thread,
        while this one may be reading a file: a worker that is born while libsndfile holds a lock
        never gets it.
        """
        if self._source is None:
            self._source = iter(self.loader)
            if self._buffer_size:
                endless = CountingIterator(self._source, 0, sys.maxsize)
                self._source = BufferedIterator(self._buffer_size, endless)
                self._source._create_consumer()

    def take(self, count: int) -> Iterator[Any]:
        """Yield the next batches, all of one epoch."""
        self.begin()
        for _ in range(count):
            batch = next(self._source)
            epoch, done = self.position
            ended = done + 1 == len(self.plans[epoch])
            self.position = (epoch + 1, 0) if ended else (epoch, done + 1)
            yield batch

    def stop(self) -> None:
        """Stop reading, and the loader's workers."""
        stop_buffer(self._source)
        stop = getattr(self.loader._iterator, "_shutdown_workers", None)
        if stop is not None:
            stop()


def stop_buffer(buffer: Any) -> None:
    """Stop the thread of a `BufferedIterator`, if it has one, and wait for it.

    A thread that is left waits for ever with its batches, or reads until Python ends: then it may
    end the process by SIGABRT.
    """
    consumer = getattr(buffer, "_consumer", None)
    if consumer is not None:
        consumer._max_len = 0  # one more batch at most
    while consumer is not None and consumer.is_alive():
        while not buffer._queue.empty():
            buffer._queue.get_nowait()
        consumer.join(0.01)


@dataclass(frozen=True)
class Batching:
    """The batching of a part of an epoch."""

    max_tokens: int | None = None  # per batch, or None
    max_sentences: int | None = None  # per batch, or None
    required_batch_size_multiple: int = 1  # fairseq's setting
    num_shards: int = 1  # processes, which take turns at the batches
    iterations: int = 0  # batches that each process has trained on

    def batches(self, dataset: Any, indices: np.ndarray) -> list[Any]:
        """Batch these items, in this order."""
        sizes = self.max_tokens, self.max_sentences, self.required_batch_size_multiple
        return list(dataset.batch_by_size(indices, *sizes))

    def rebatch(self, other: "Batching", dataset: Any, batches: list[Any]) -> list[Any]:
        """Batch the items of `batches` that `other` has not trained on, in the same order."""
        left = [batch for batch in batches[other.iterations * other.num_shards :] if len(batch)]
        alike = replace(other, iterations=0, num_shards=self.num_shards)
        if not left or replace(self, iterations=0) == alike:
            return left
        return self.batches(
            dataset, np.concatenate([np.asarray(batch, np.int64) for batch in left])
        )
