"""Which seconds of which track: a pure function of (seed, epoch, index).

Nothing here draws from a global generator, so crops are the same for any number of workers, after
a resume, and whoever else draws random numbers.
"""

import numpy as np

# What a generator is for. Streams never overlap, so adding draws to one leaves the others alone.
CROPS, MASKS, REPLACEMENT, ORDER, MIXING = range(5)

_WORD = (1 << 64) - 1


def generator(seed: int, epoch: int, index: int, stream: int) -> np.random.Generator:
    """The one source of randomness of the data path.

    Philox is counter-based: seed and stream are its key, epoch and index the upper half of its
    256-bit counter. So different arguments give disjoint parts of its sequence by construction,
    rather than probably so by hashing.

    Args:
        seed: any integer.
        epoch: 0 or more; 0 is also what evaluation uses always.
        index: of the crop in its epoch.
        stream: one of CROPS, MASKS, REPLACEMENT, ORDER, MIXING.
    """
    key = (seed & _WORD) | stream << 64
    return np.random.Generator(np.random.Philox(key=key, counter=index << 128 | epoch << 192))


class CropPlan:
    """Cuts tracks into crops; what an index means changes from epoch to epoch only in its start.

    A track that holds `n` crop lengths gives `n` crops per epoch, one drawn uniformly from each of
    `n` equal strata of its possible starts. So the crops come from all parts of the track, and the
    cuts fall elsewhere in each epoch. Neighbours may overlap and leave gaps: of five minutes in 5 s
    crops, one epoch reads 83 %, two read 96 % and three 98 %. (Stock fairseq draws one crop per
    track and epoch, and reads 1/60.)

    Attributes:
        crop_samples: samples of a full crop.
        num_too_short: tracks left out because they are shorter than `min_samples`.
    """

    def __init__(
        self,
        num_samples: np.ndarray,
        crop_samples: int,
        hop: int,
        min_samples: int,
        crops_per_track: int | None = None,
        seed: int = 0,
    ):
        """Plan the crops of some tracks.

        Args:
            num_samples: `[tracks]` length of each.
            crop_samples: samples of a crop; a shorter track gives one crop of its own length.
            hop: starts are multiples of this many samples.
            min_samples: tracks shorter than this are left out.
            crops_per_track: crops of every track an epoch, instead of as many as fit.
            seed: of starts and order.
        """
        long_enough = num_samples >= min_samples
        self._tracks = np.flatnonzero(long_enough)
        self._num_samples = num_samples[self._tracks]
        self.num_too_short = len(num_samples) - len(self._tracks)
        if crops_per_track is None:
            counts = np.maximum(1, self._num_samples // crop_samples)
        else:
            counts = np.full(len(self._tracks), crops_per_track, np.int64)
        self._ends = np.cumsum(counts)
        self.crop_samples = crop_samples
        self._hop = hop
        self._seed = seed

    def __len__(self) -> int:
        """Crops an epoch."""
        return int(self._ends[-1]) if len(self._ends) else 0

    @property
    def num_tracks(self) -> int:
        """Tracks that are long enough."""
        return len(self._tracks)

    @property
    def lengths(self) -> np.ndarray:
        """`[len]` int32 samples of each crop. Made when asked for: crops can be many millions."""
        lengths = np.minimum(self._num_samples, self.crop_samples).astype(np.int32)
        return np.repeat(lengths, np.diff(self._ends, prepend=0))

    def length(self, index: int) -> int:
        """Samples of one crop."""
        row = np.searchsorted(self._ends, index, side="right")
        return min(int(self._num_samples[row]), self.crop_samples)

    def crop(self, index: int, epoch: int) -> tuple[int, int, int]:
        """Where a crop lies.

        Returns:
            Track (as numbered by the `num_samples` given), first sample, and samples.

        Raises:
            IndexError: if `index` is not in [0, len).
        """
        if not 0 <= index < len(self):
            raise IndexError(f"crop {index} of {len(self)}")
        row = int(np.searchsorted(self._ends, index, side="right"))
        first = int(self._ends[row - 1]) if row else 0
        count = int(self._ends[row]) - first
        num_samples = int(self._num_samples[row])
        if num_samples <= self.crop_samples:
            return int(self._tracks[row]), 0, num_samples
        starts = (num_samples - self.crop_samples) // self._hop + 1
        low = (index - first) * starts // count
        high = max(low + 1, (index - first + 1) * starts // count)
        start = int(generator(self._seed, epoch, index, CROPS).integers(low, high)) * self._hop
        return int(self._tracks[row]), start, self.crop_samples

    def order(self, epoch: int, shuffle: bool = True) -> np.ndarray:
        """The order in which to batch: full crops first, then the shorter ones, longest first.

        So all batches but the last few have crops of one length and need no padding, and those few
        need little. (fairseq shuffles the batches afterwards.)

        Args:
            shuffle: put the full crops, and shorter ones of equal length, in random order.

        Returns:
            `[len]` int64, a permutation.
        """
        if shuffle:
            order = generator(self._seed, epoch, 0, ORDER).permutation(len(self))
        else:
            order = np.arange(len(self), dtype=np.int64)
        lengths = self.lengths[order]
        full = lengths == self.crop_samples
        shorter = order[~full]
        descending = np.argsort(-lengths[~full], kind="stable")
        return np.concatenate([order[full], shorter[descending]])
