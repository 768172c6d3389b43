"""Windows of a split with their features and labels, as fairseq wants them."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from fairseq.data import FairseqDataset

from music_ssl_fairseq.frames import SAMPLE_RATE
from music_ssl_fairseq.probing.features.cache import Clip, FeatureStore
from music_ssl_fairseq.probing.features.fill import Plan
from music_ssl_fairseq.probing.features.windows import FRAME_HOP, FRAME_RATE
from music_ssl_fairseq.probing.labels import ProbingSplit

NEIGHBOUR = 0.5
"""Target of the frames beside a beat's: an annotation is no more precise than that."""


class ProbingDataset(FairseqDataset):
    """An item is a window: features `[rows, layers, D]`, and its clip's label.

    Training goes through the windows in an order that follows from (seed, epoch), evaluation in
    that of the manifest, a clip's windows one after the other.
    """

    def __init__(
        self,
        split: ProbingSplit,
        clips: Sequence[Clip],
        store: FeatureStore,
        plan: Plan,
        seed: int,
        shuffle: bool,
        batches_at_once: int = 1,
    ):
        """
        Args:
            shuffle: for training.
            batches_at_once: mini-batches in what fairseq takes for one.
        """
        self.split = split
        self.clips = clips
        self._store = store
        self._seed = seed
        self._shuffle = shuffle
        self._epoch = 1
        self._at_once = batches_at_once
        self._batch_size = len(split.manifest)
        self._frames = plan.frames
        counts = [plan.row_counts(clip) for clip in clips]
        self._clip_of = np.repeat(np.arange(len(clips)), [len(count) for count in counts])
        self._count = np.concatenate([np.array(count, np.int64) for count in counts])
        self._first = np.concatenate([np.cumsum([0, *count[:-1]]) for count in counts])
        self._starts = [plan.windows(clip)[0].start // FRAME_HOP for clip in clips]

    def __len__(self) -> int:
        return len(self._clip_of)

    @property
    def windows_per_clip(self) -> np.ndarray:
        """`[clips]` int64."""
        return np.bincount(self._clip_of, minlength=len(self.clips))

    def features(self, index: int) -> np.ndarray:
        """A window's features, `[rows, layers, D]`."""
        first, count = self._first[index], self._count[index]
        rows = self._store.rows(self.clips[self._clip_of[index]].key)
        return rows[first : first + count]

    def __getitem__(self, index: int) -> dict[str, Any]:
        """`features` `[rows, layers, D]`, `target` `[rows, ...]`, `clip`, `first` (row in it)."""
        clip = int(self._clip_of[index])
        count = int(self._count[index])
        if self._frames:
            target: np.ndarray = self._beat_targets(clip)[int(self._first[index]) :][:count]
        else:
            target = self.split.targets[clip : clip + 1]
        return {
            "id": index,
            "clip": clip,
            "first": int(self._first[index]),
            "features": self.features(index),
            "target": target,
        }

    def _beat_targets(self, clip: int) -> np.ndarray:
        """`[frames]` float32 for a whole clip: 1 at a beat, 0.5 beside one."""
        length = (self.clips[clip].stop - self.clips[clip].start) // FRAME_HOP + 2
        target = np.zeros(length, np.float32)
        frames = np.round(self.split.beats[clip].times * FRAME_RATE).astype(int)
        frames -= self._starts[clip]
        for offset, value in ((-1, NEIGHBOUR), (1, NEIGHBOUR), (0, 1.0)):
            places = frames + offset
            target[places[(places >= 0) & (places < length)]] = value
        return target

    def beat_times(self, clip: int) -> np.ndarray:
        """Beats in seconds from the clip's first sample on."""
        start, stop = self.clips[clip].start / SAMPLE_RATE, self.clips[clip].stop / SAMPLE_RATE
        times = self.split.beats[clip].times
        return times[(times >= start) & (times < stop)] - start

    def described(self, index: int, epoch: int) -> tuple[str, float]:
        """A window's track, and the largest of its features: of what a batch consisted."""
        clip = self.clips[self._clip_of[index]]
        return clip.path, float(np.abs(self.features(index)).max())

    def collater(self, samples: list[dict[str, Any]]) -> dict[str, Any]:
        """Batch windows.

        Returns:
            `net_input.features` `[N, layers, D]` as kept, N the rows of all windows; `target`
            `[N, ...]`; `clip` and `first` `[B]`, `rows` a list of B: rows of each window;
            `batch_size`: windows of each mini-batch in it, of which the last may have fewer.
        """
        if not samples:
            return {}
        features = np.concatenate([sample["features"] for sample in samples])
        targets = np.concatenate([sample["target"] for sample in samples])
        if self.split.task.kind in ("multi-label", "beats"):
            targets = targets.astype(np.float32)
        return {
            "id": torch.tensor([sample["id"] for sample in samples]),
            "nsentences": len(samples),
            "ntokens": len(features),
            "clip": torch.tensor([sample["clip"] for sample in samples]),
            "first": torch.tensor([sample["first"] for sample in samples]),
            "rows": [len(sample["features"]) for sample in samples],
            "batch_size": self._batch_size,
            "target": torch.from_numpy(targets),
            "net_input": {"features": torch.from_numpy(features)},
        }

    def size(self, index: int) -> int:
        """Rows of a window."""
        return int(self._count[index])

    def num_tokens(self, index: int) -> int:
        """The same."""
        return int(self._count[index])

    def ordered_indices(self) -> np.ndarray:
        """All windows; shuffled in training."""
        if not self._shuffle:
            return np.arange(len(self))
        return np.random.default_rng([self._seed, self._epoch]).permutation(len(self))

    def filter_indices_by_size(
        self, indices: np.ndarray, max_sizes: object
    ) -> tuple[np.ndarray, list[int]]:
        """Leaves everything in."""
        return indices, []

    def batch_by_size(
        self,
        indices: np.ndarray,
        max_tokens: int | None = None,
        max_sentences: int | None = None,
        required_batch_size_multiple: int = 1,
    ) -> list[np.ndarray]:
        """Batches of `max_sentences` windows, or of as many mini-batches of that size as are taken
        at once; the last one too: fairseq would drop it."""
        self._batch_size = max_sentences or 64
        size = self._batch_size * self._at_once
        return [indices[first : first + size] for first in range(0, len(indices), size)]

    def set_epoch(self, epoch: int) -> None:
        """Another order; evaluation has none."""
        self._epoch = epoch

    @property
    def can_reuse_epoch_itr_across_epochs(self) -> bool:
        """Only in evaluation: training wants new batches each epoch."""
        return not self._shuffle
