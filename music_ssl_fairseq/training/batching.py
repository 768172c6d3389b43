"""The batching of a part of an epoch, from which the rest can be batched anew."""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Batching:
    """The batching of a part of an epoch."""

    max_tokens: int | None = None  # per batch, or None
    max_sentences: int | None = None  # per batch, or None
    required_batch_size_multiple: int = 1  # fairseq's setting
    num_shards: int = 1  # processes, which take turns at the batches
    iterations: int = 0  # batches that each process has trained on

    def gives_batches_of(self, other: "Batching") -> bool:
        """Return whether the batches of each process are the same."""
        return self._has_sizes_of(other) and self.num_shards == other.num_shards

    def _has_sizes_of(self, other: "Batching") -> bool:
        now = replace(self, iterations=0, num_shards=1)
        return now == replace(other, iterations=0, num_shards=1)

    def batches(self, dataset: Any, indices: np.ndarray) -> list[Any]:
        """Batch these items, in this order."""
        sizes = self.max_tokens, self.max_sentences, self.required_batch_size_multiple
        return list(dataset.batch_by_size(indices, *sizes))

    def rebatch(self, other: "Batching", dataset: Any, batches: list[Any]) -> list[Any]:
        """Batch the items of `batches` that `other` has not trained on, in the same order."""
        left = [batch for batch in batches[other.iterations * other.num_shards :] if len(batch)]
        if not left or self._has_sizes_of(other):
            return left
        return self.batches(
            dataset, np.concatenate([np.asarray(batch, np.int64) for batch in left])
        )
