"""Draw span masks: with a fixed number of masked frames, or fairseq's.

fairseq draws spans per crop. Then it unmasks random frames until every crop of the batch has as few
masked frames as the least masked one (`require_same_masks` of `compute_mask_indices`). So its
masking ratio falls with the batch size, and single frames inside spans stay visible. At 249 frames,
probability 0.8 and length 10 the ratio is 57 % for one crop and about 45 % for a batch of 100.

Here spans are drawn in the same way until a crop has as many masked frames as fairseq's spans cover
on average. The number depends on no batch, so shapes are fixed. `model.mask_mode=fairseq` gives
fairseq's own masks.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from fairseq.data.data_utils import compute_mask_indices
from numpy.lib.stride_tricks import sliding_window_view

from music_ssl_fairseq.errors import InputError


@dataclass(frozen=True)
class _Spans:
    """Settings of span masks."""

    # `mask_prob`, in [0, 1]: spans times their length, as a share of the frames. Spans overlap,
    # so fewer frames are masked: 0.65 masks 49 % of 5 s, 0.8 masks 57 %.
    prob: float
    length: int  # `mask_length`: frames of a span
    # Fewest spans of a crop, fairseq's `mask_min_masks`: 2 in HuBERT, 1 in data2vec
    min_spans: int = 2


class SpanMask(_Spans):
    """Draw masks of overlapping spans that mask exactly `count(T)` frames of a crop of `T`."""

    def count(self, num_frames: int) -> int:
        """Return the number of masked frames in a crop: never all, and 0 only for `prob` 0.

        It is the rounded expectation of fairseq's distribution.
        """
        return _count(num_frames, self.prob, self.length, self.min_spans)

    def mask(
        self, num_frames: int, rng: np.random.Generator, length: int | None = None
    ) -> np.ndarray:
        """Draw a mask: `[num_frames]` bool, true at exactly `count(num_frames)` frames.

        Spans are `length` frames long, by default `self.length`; as many frames are masked.
        """
        count = self.count(num_frames)
        if count == 0:
            return np.zeros(num_frames, bool)
        length = _span_length(num_frames, length or self.length)
        starts = num_frames - length
        # Spans come in a random order of starts. A frame is covered by the first span that holds
        # it: at the least rank among the starts of the `length` frames up to it.
        rank = np.full(num_frames + length - 1, num_frames)
        rank[length - 1 : length - 1 + starts] = rng.permutation(starts)
        covered_at = sliding_window_view(rank, length).min(axis=1)
        last = np.partition(covered_at, count - 1)[count - 1]
        mask = covered_at < last
        # Spans are equally long, so the last one adds one run of frames.
        added = np.flatnonzero(covered_at == last)
        needed = count - np.count_nonzero(mask)
        joins_next = added[-1] + 1 < num_frames and mask[added[-1] + 1]
        mask[added[-needed:] if joins_next else added[:needed]] = True
        return mask


@dataclass(frozen=True)
class SpanGrowth:
    """A curriculum: spans grow from epoch to epoch, in equal steps."""

    first: int  # frames of a span in epoch 1
    last: int  # frames of a span from epoch `epochs` on
    epochs: int  # epochs until spans have their last length

    def __post_init__(self) -> None:
        if not (1 <= self.first <= self.last and self.epochs >= 2):
            raise InputError(
                f"task.mask_length_start={self.first}, task.mask_growth_epochs={self.epochs}: the "
                f"first must be 1 to model.mask_length ({self.last}), the second at least 2"
            )

    def length(self, epoch: int) -> int:
        """Return the frames of a span in an epoch, counted from 1."""
        share = min(epoch - 1, self.epochs - 1) / (self.epochs - 1)
        return self.first + round(share * (self.last - self.first))


class FairseqMask(_Spans):
    """Draw the masks of a batch with fairseq's function, as its HuBERT and data2vec call it.

    Spans have one length and may overlap, and `require_same_masks` is on; `mask_selection`,
    `mask_other`, `no_mask_overlap` and `mask_dropout` keep their defaults. fairseq passes no seed.
    With one, a crop's spans follow from seed, epoch and index, and the frames that are unmasked
    again from all indices of the batch.
    """

    def check(self, num_frames: int) -> None:
        """Refuse crops, the shortest of `num_frames`, for which fairseq's function fails."""
        spans = max(self.min_spans, int(self.prob * num_frames / self.length) + 1)
        if self.prob and num_frames - self.length <= spans:
            raise InputError(
                f"model.mask_mode=fairseq: {spans} spans of {self.length} frames do not fit the "
                f"shortest crop, of {num_frames} frames: raise task.min_seconds, or take "
                "model.mask_mode=fixed"
            )

    def batch(
        self, num_frames: Sequence[int], seed: int, epoch: int, indices: Sequence[int]
    ) -> np.ndarray:
        """Draw the masks of a batch.

        Args:
            num_frames: of each crop.
            indices: of the crops in their epoch.

        Returns:
            `[B, longest]` bool, true at equally many frames per crop, never at padding.
        """
        longest = max(num_frames)
        if self.prob == 0:
            return np.zeros((len(indices), longest), bool)
        padding = torch.arange(longest) >= torch.tensor(num_frames)[:, None]
        return compute_mask_indices(
            (len(indices), longest),
            padding if padding.any() else None,
            self.prob,
            self.length,
            min_masks=self.min_spans,
            seed=seed,
            epoch=epoch,
            indices=np.asarray(indices),
        )


MASK_MODES: dict[str, type[SpanMask | FairseqMask]] = {"fixed": SpanMask, "fairseq": FairseqMask}
"""`model.mask_mode` -> the class that draws the masks."""


@dataclass(frozen=True)
class CropMasks:
    """Settings of the masks of each crop."""

    spans: SpanMask | FairseqMask
    growth: SpanGrowth | None  # span lengths per training epoch; None for the length of `spans`
    number: int  # masks per crop; 1 for `FairseqMask`, which depends on the batch
    count_visible: bool  # whether batches have `num_visible`


def _span_length(num_frames: int, length: int) -> int:
    # Spans in a crop of less than two of them are shorter, so that their places can vary.
    return min(length, num_frames // 2)


@lru_cache(maxsize=4096)
def _count(num_frames: int, prob: float, length: int, min_spans: int) -> int:
    if num_frames < 2 or prob == 0:
        return 0
    length = _span_length(num_frames, length)
    spans = prob * num_frames / length
    # fairseq adds a uniform number in [0, 1) and truncates: one of the two neighbours.
    few, many = (max(min_spans, int(spans) + more) for more in (0, 1))
    share = spans - int(spans)
    covered = (1 - share) * expected_coverage(num_frames, length, few)
    covered += share * expected_coverage(num_frames, length, many)
    return min(max(1, round(covered)), num_frames - 1)


def expected_coverage(num_frames: int, length: int, spans: int) -> float:
    """Return the mean number of frames under `spans` spans of `length` frames.

    Starts are drawn without replacement from [0, num_frames - length), as in fairseq. A frame that
    `a` of the `S` starts would cover stays free if all spans start elsewhere: with the
    hypergeometric probability C(S - a, spans) / C(S, spans).
    """
    starts = num_frames - length
    drawn = np.arange(min(spans, starts))
    frame = np.arange(num_frames)
    covering = np.minimum(frame, starts - 1) - np.maximum(frame - length + 1, 0) + 1
    others = starts - np.maximum(covering, 0)
    free = np.maximum(others[:, None] - drawn, 0) / (starts - drawn)
    return float(np.sum(1 - free.prod(axis=1)))
