"""An epoch that continues where its crops ended, with whatever batches come then.

fairseq counts batches. After a change of the batch size, of `update_freq` or of the number of
processes, its count means other crops: some come twice, others never, or the run ends in
"dataloader mismatch". Here a checkpoint says how its epoch was cut. On resuming, the crops that are
left are taken in the order in which they would have come, and cut anew.
"""

import copy
import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from fairseq.data import data_utils, iterators

from music_ssl_fairseq.compat import one_line_errors
from music_ssl_fairseq.errors import InputError

_CUTS = "cuts"
"""Where a checkpoint keeps them, beside fairseq's position."""


@dataclass(frozen=True)
class Cut:
    """How an epoch's crops were cut into batches, for how long.

    Attributes:
        max_tokens: of a batch, or None.
        max_sentences: of a batch, or None.
        required_batch_size_multiple: as fairseq has it.
        num_shards: processes, which take turns at the batches.
        iterations: batches that each process has trained on.
    """

    max_tokens: int | None = None
    max_sentences: int | None = None
    required_batch_size_multiple: int = 1
    num_shards: int = 1
    iterations: int = 0

    def is_as(self, other: "Cut") -> bool:
        """Whether the batches of each process are the same."""
        return self._has_sizes_of(other) and self.num_shards == other.num_shards

    def _has_sizes_of(self, other: "Cut") -> bool:
        now = replace(self, iterations=0, num_shards=1)
        return now == replace(other, iterations=0, num_shards=1)

    def cut(self, dataset: Any, indices: np.ndarray) -> list[Any]:
        """Batches of these items, in this order."""
        return list(
            dataset.batch_by_size(
                indices,
                max_tokens=self.max_tokens,
                max_sentences=self.max_sentences,
                required_batch_size_multiple=self.required_batch_size_multiple,
            )
        )

    def after(self, other: "Cut", dataset: Any, batches: list[Any]) -> list[Any]:
        """What is left of batches that were cut otherwise, in the same order."""
        left = [batch for batch in batches[other.iterations * other.num_shards :] if len(batch)]
        if not left or self._has_sizes_of(other):
            return left
        return self.cut(dataset, np.concatenate([np.asarray(batch, np.int64) for batch in left]))


def note_cut(iterator: Any, settings: dict[str, Any]) -> Any:
    """Tell an epoch iterator how it cuts: with the arguments of `get_batch_iterator`."""
    names = ("max_tokens", "max_sentences", "required_batch_size_multiple", "num_shards")
    iterator.cut = Cut(**{name: settings[name] for name in names if name in settings})
    return iterator


class CroppedEpochs(iterators.EpochBatchIterator):
    """fairseq's, with a position in items instead of batches, and errors of one line.

    Attributes:
        cut: see `note_cut`. None for fairseq's own behaviour.
    """

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.cut: Cut | None = None
        self._before: list[Cut] = []  # cuts of the epoch that was continued, and which one that is
        self._continued = 0
        self._offset = 0

    @property
    def first_batch(self) -> Any:
        """fairseq's; an unreadable corpus is one line."""
        with one_line_errors():
            return super().first_batch

    def end_of_epoch(self) -> bool:
        """Whether the epoch is through; not before it has begun."""
        return self._cur_epoch_itr is not None and super().end_of_epoch()

    def state_dict(self) -> dict[str, Any]:
        """fairseq's, and the cuts of the present epoch."""
        state = super().state_dict()
        if self.cut is not None and state["iterations_in_epoch"]:
            here = self._before if self._continued == state["epoch"] else []
            offset = self._offset if here else 0
            now = replace(self.cut, iterations=state["iterations_in_epoch"] - offset)
            state[_CUTS] = [asdict(cut) for cut in [*here, now]]
            state["items"] = len(self.dataset)
        return state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go to where the crops of the epoch ended."""
        cuts = [Cut(**cut) for cut in state_dict.get(_CUTS, [])]
        if self.cut is None or not cuts:
            super().load_state_dict(state_dict)
            return
        with one_line_errors():
            self._check_length(state_dict)
        if len(cuts) == 1 and cuts[0].is_as(self.cut):
            super().load_state_dict(state_dict)
            return
        self.epoch = self._continued = state_dict["epoch"]
        self._before = cuts
        shuffle = state_dict.get("shuffle", True)
        left = self._left(self.epoch, shuffle)
        num_left = sum(map(len, left))
        if not left:
            self.epoch += 1
            return
        # Where the epoch counts from is only for the log, which says how far it has come.
        trained = (len(self.dataset) - num_left) / num_left
        self._offset = max(1, round(trained * len(left) / self.num_shards))
        self._next_epoch_itr = self._get_iterator_for_epoch(
            self.epoch, shuffle, offset=self._offset
        )

    def _check_length(self, state: dict[str, Any]) -> None:
        if state["items"] != len(self.dataset):
            raise InputError(
                f"the checkpoint is from within an epoch of {state['items']} crops, and this one "
                f"has {len(self.dataset)}: the data or the length of crops has changed; start a "
                "new run (hydra.run.dir=...), or take the weights alone (model.init_from=...)"
            )

    def _left(self, epoch: int, shuffle: bool) -> list[Any]:
        """The batches that the epoch has still to come, of all processes."""
        assert self.cut is not None
        batches = self._shuffled(self._before[0], epoch, shuffle)
        for cut, following in zip(self._before, [*self._before[1:], self.cut], strict=True):
            batches = following.after(cut, self.dataset, batches)
        return batches

    def _shuffled(self, cut: Cut, epoch: int, shuffle: bool) -> list[Any]:
        """All batches of an epoch, as all processes together go through them."""
        self.dataset.set_epoch(epoch)
        whole = copy.copy(self)
        whole._continued = 0
        whole.num_shards = cut.num_shards
        with data_utils.numpy_seed(self.seed + epoch):  # as fairseq's tasks do
            whole._frozen_batches = tuple(cut.cut(self.dataset, self.dataset.ordered_indices()))
        shards = []
        for shard in range(cut.num_shards):
            whole.shard_id = shard
            shards.append(whole.ordered_batches(epoch, False, shuffle))
        return [batch for at_once in zip(*shards, strict=True) for batch in at_once]

    def ordered_batches(self, epoch: int, fix_batches_to_gpus: bool, shuffle: bool) -> list[Any]:
        """This process's batches; of an epoch that is continued those that are left, after as
        many empty ones as its position says."""
        if epoch != self._continued or self.cut is None:
            return super().ordered_batches(epoch, fix_batches_to_gpus, shuffle)
        batches = self._left(epoch, shuffle)
        shard = iterators.ShardedIterator(batches, self.num_shards, self.shard_id, fill_value=[])
        return [[]] * self._offset + list(shard)

    def _get_iterator_for_epoch(self, *args: Any, **kwargs: Any) -> Any:
        iterator = super()._get_iterator_for_epoch(*args, **kwargs)
        if iterator is not None:
            iterator._itr = _OneLineEach(iterator._itr)
        return iterator


class _OneLineEach:
    """An iterator whose errors, also those of loading processes, are one line."""

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
    """fairseq's, which loses the last update of an epoch that is continued within an update."""

    def __init__(self, iterable: Any, chunk_size: int, skip_remainder_batch: bool = False):
        super().__init__(iterable, chunk_size, skip_remainder_batch)
        first = getattr(iterable, "n", 0)
        left = (len(iterable) - first) / chunk_size
        updates = math.floor(left) if skip_remainder_batch else math.ceil(left)
        self.total = self.n + updates
        if skip_remainder_batch:
            iterable.take(first + updates * chunk_size)


def patch_epochs() -> None:
    """Let fairseq's tasks and its training loop make these."""
    iterators.EpochBatchIterator = CroppedEpochs
    iterators.GroupedIterator = GroupedBatches
