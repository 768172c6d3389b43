"""Resuming within an epoch, also with another batch size or number of processes.

fairseq counts batches. After a change of the batch size, of `update_freq` or of the number of
processes, its count means other crops: some come twice, others never, or the run ends in
"dataloader mismatch". Here a checkpoint says how its epoch was batched. On resuming, the crops that
are left keep their order and are batched anew.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from typing import Any

import numpy as np
from fairseq.data import iterators

from music_ssl_fairseq.compat import one_line_errors
from music_ssl_fairseq.errors import InputError
from music_ssl_fairseq.runtime.user_command import with_setting
from music_ssl_fairseq.training.stream import Batching, Plan, Plans, Stream, stop_buffer

_BATCHINGS = "cuts"
"""Key of the batchings in a checkpoint, beside fairseq's position."""


def note_batching(
    iterator: Any, settings: dict[str, Any], batches_of: Callable[[int], list[Any]] | None = None
) -> Any:
    """Set an epoch iterator's batching, from the arguments of `get_batch_iterator`.

    `batches_of` makes an epoch's batches, in any thread. With it the iterator reads ahead across
    the ends of epochs; its dataset must have `item(index, epoch)`.
    """
    names = ("max_tokens", "max_sentences", "required_batch_size_multiple", "num_shards")
    iterator.batching = Batching(**{name: settings[name] for name in names if name in settings})
    iterator.batches_of = batches_of
    return iterator


class ResumableEpochs(iterators.EpochBatchIterator):
    """fairseq's iterator, with a position in crops instead of batches, and one-line errors.

    `note_batching` sets `batching`, without which it behaves as fairseq's, and `batches_of`.
    """

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.batching: Batching | None = None
        self.batches_of: Callable[[int], list[Any]] | None = None
        self._stream: Stream | None = None
        self._buffer: Any = None  # of the present epoch, without a stream
        self._order: tuple[bool, bool] | None = None  # of the stream: shuffled, fixed to GPUs
        self._first_batch: Any = None
        self._earlier_parts: list[Batching] = []  # of the resumed epoch
        self._resumed_epoch = 0
        self._offset = 0

    @property
    def first_batch(self) -> Any:
        """Return fairseq's first batch, read once; an unreadable corpus is a one-line error.

        It stands in where one of several processes has run out of batches, and counts for nothing
        there. For a process by itself it only shows that the corpus can be read: one item does.
        """
        if self._first_batch is None:
            with one_line_errors():
                readable = getattr(self.dataset, "supports_fetch_outside_dataloader", True)
                if self.num_shards == 1 and readable and len(self.frozen_batches):
                    item = self.dataset[self.frozen_batches[0][0]]
                    self._first_batch = self.collate_fn([item])
                else:
                    self._first_batch = super().first_batch
        return self._first_batch

    def end_of_epoch(self) -> bool:
        """Return whether the epoch has ended; False before it has begun."""
        return self._cur_epoch_itr is not None and super().end_of_epoch()

    def state_dict(self) -> dict[str, Any]:
        """Return fairseq's state, and the batchings of the present epoch."""
        state = super().state_dict()
        if self.batching is not None and state["iterations_in_epoch"]:
            here = self._earlier_parts if self._resumed_epoch == state["epoch"] else []
            offset = self._offset if here else 0
            now = replace(self.batching, iterations=state["iterations_in_epoch"] - offset)
            state[_BATCHINGS] = [asdict(part) for part in [*here, now]]
            state["items"] = len(self.dataset)
        return state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Resume after the crops that the epoch has used."""
        parts = [Batching(**part) for part in state_dict.get(_BATCHINGS, [])]
        if self.batching is None or not parts:
            super().load_state_dict(state_dict)
            return
        with one_line_errors():
            if state_dict["items"] != len(self.dataset):
                raise InputError(
                    f"the checkpoint is from within an epoch of {state_dict['items']} crops, and "
                    f"this one has {len(self.dataset)}: the data or the length of crops has "
                    "changed; start a new run (hydra.run.dir=...), or take the weights alone "
                    "(model.init_from=...)"
                )
        if len(parts) == 1 and replace(parts[0], iterations=0) == self.batching:
            super().load_state_dict(state_dict)
            return
        self.epoch = self._resumed_epoch = state_dict["epoch"]
        self._earlier_parts = parts
        shuffle = state_dict.get("shuffle", True)
        left = self._remaining(self.epoch, shuffle)
        num_left = sum(map(len, left))
        if not left:
            self.epoch += 1
            return
        # The offset only sets how far the log says the epoch has come.
        trained = (len(self.dataset) - num_left) / num_left
        self._offset = max(1, round(trained * len(left) / self.num_shards))
        self._next_epoch_itr = self._get_iterator_for_epoch(
            self.epoch, shuffle, offset=self._offset
        )

    def _remaining(self, epoch: int, shuffle: bool) -> list[Any]:
        """Return the batches that are left of an epoch, of all processes."""
        assert self.batching is not None
        first, *following = [*self._earlier_parts, self.batching]
        self.dataset.set_epoch(epoch)
        batches = first.batches(self.dataset, self.dataset.ordered_indices())
        if shuffle:
            batches = self._shuffle(batches, epoch, first.num_shards)
        batches += [[]] * (-len(batches) % first.num_shards)
        for part, next_part in zip(self._earlier_parts, following, strict=True):
            batches = next_part.rebatch(part, self.dataset, batches)
        return batches

    def ordered_batches(self, epoch: int, fix_batches_to_gpus: bool, shuffle: bool) -> list[Any]:
        """Return this process's batches; in a resumed epoch, empty ones up to its position."""
        if epoch != self._resumed_epoch or self.batching is None:
            return super().ordered_batches(epoch, fix_batches_to_gpus, shuffle)
        batches = self._remaining(epoch, shuffle)
        shard = iterators.ShardedIterator(batches, self.num_shards, self.shard_id, fill_value=[])
        return [[]] * self._offset + list(shard)

    def _get_iterator_for_epoch(
        self, epoch: int, shuffle: bool, fix_batches_to_gpus: bool = False, offset: int = 0
    ) -> Any:
        if self.batches_of is None:
            stop_buffer(self._buffer)  # of a validation cut short by dataset.max_valid_steps
            iterator = super()._get_iterator_for_epoch(epoch, shuffle, fix_batches_to_gpus, offset)
            self._buffer = getattr(iterator, "_itr", None)
        else:
            iterator = self._from_stream(epoch, (shuffle, fix_batches_to_gpus), offset)
        if iterator is not None:
            iterator._itr = _OneLineErrors(iterator._itr)
        return iterator

    def _from_stream(self, epoch: int, order: tuple[bool, bool], offset: int) -> Any:
        """Return an epoch's iterator: the next part of the stream, or of a new one."""
        if self._stream is None or (self._stream.position, self._order) != ((epoch, offset), order):
            self.stop()
            self._order = order
            self._stream = Stream(
                self.dataset,
                Plans(lambda epoch: self._plan(epoch, *order)),
                (epoch, offset),
                self.buffer_size,
                collate_fn=self.collate_fn,
                num_workers=self.num_workers,
                timeout=self.timeout,
                pin_memory=True,
                persistent_workers=self.persistent_workers,
            )
            self.dataloader = self._stream.loader
        self._stream.plans.forget_before(epoch)
        total = len(self._stream.plans[epoch])
        if total <= offset and offset > 0:
            return None
        return iterators.CountingIterator(self._stream.take(total - offset), offset, total)

    def begin(self, shuffle: bool, fix_batches_to_gpus: bool) -> None:
        """Begin to read the next epoch, whose iterator will be asked for with these arguments."""
        if self.batches_of is None:
            return
        if self._next_epoch_itr is None:
            self._from_stream(self.next_epoch_idx, (shuffle, fix_batches_to_gpus), 0)
        assert self._stream is not None
        self._stream.begin()

    def stop(self) -> None:
        stop_buffer(self._buffer)
        if self._stream is not None:
            self._stream.stop()
            self._stream = None

    def _plan(self, epoch: int, shuffle: bool, fix_batches_to_gpus: bool) -> Plan:
        """Return an epoch's batches of this process, as `ordered_batches` does, in any thread."""
        if epoch == self._resumed_epoch and self.batching is not None:
            batches = self.ordered_batches(epoch, fix_batches_to_gpus, shuffle)
        else:
            assert self.batches_of is not None
            batches = self.batches_of(epoch)
            if shuffle:
                batches = self._shuffle(batches, epoch, self.num_shards)
            shard = self.num_shards, self.shard_id
            batches = list(iterators.ShardedIterator(batches, *shard, fill_value=[]))
        return batches[: len(batches) - self.skip_remainder_batch]

    def _shuffle(self, batches: list[Any], epoch: int, num_shards: int) -> list[Any]:
        """Shuffle as fairseq does, without the global generator, which other threads may use."""
        size = num_shards if self.grouped_shuffling else 1
        groups = [batches[i * size : (i + 1) * size] for i in range(len(batches) // size)]
        np.random.RandomState(self.seed + epoch).shuffle(groups)
        return [batch for group in groups for batch in group]


class _OneLineErrors:
    """An iterator whose errors are one line, in loading processes too."""

    def __init__(self, iterator: Iterator[Any]):
        self._iterator = iterator

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        with one_line_errors():
            return next(self._iterator)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._iterator, name)


class GroupedBatches(iterators.GroupedIterator):
    """fairseq's iterator, without its loss of a last update when resumed within an update."""

    def __init__(self, iterable: Any, chunk_size: int, skip_remainder_batch: bool = False):
        super().__init__(iterable, chunk_size, skip_remainder_batch)
        first = getattr(iterable, "n", 0)
        left = (len(iterable) - first) / chunk_size
        updates = math.floor(left) if skip_remainder_batch else math.ceil(left)
        self.total = self.n + updates
        if skip_remainder_batch and not updates:
            with one_line_errors():
                raise InputError(
                    "optimization.skip_remainder_batch=true: the epoch has no whole update of "
                    f"{chunk_size} batches (optimization.update_freq)",
                    with_setting("optimization.skip_remainder_batch="),
                )
        if skip_remainder_batch:
            iterable.take(first + updates * chunk_size)


def patch_epochs() -> None:
    """Let fairseq's tasks and training loop use these classes."""
    iterators.EpochBatchIterator = ResumableEpochs
    iterators.GroupedIterator = GroupedBatches
