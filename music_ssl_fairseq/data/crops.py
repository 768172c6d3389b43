"""Choose crops as a pure function of (seed, epoch, index).

No global generator is used, so crops do not depend on the number of workers, on a resume, or on
other code that draws random numbers.
"""

import numpy as np

# Streams of random numbers. They never overlap: more draws from one do not change the others.
CROPS, MASKS, REPLACEMENT, ORDER, MIXING, EQUALISER = range(6)

_WORD = (1 << 64) - 1


def generator(seed: int, epoch: int, index: int, stream: int) -> np.random.Generator:
    """Return the generator of one crop's stream; the data path has no other randomness.

    Philox is counter-based: seed and stream are its key, epoch and index the upper half of its
    256-bit counter. Different arguments give disjoint parts of its sequence by construction.
    Evaluation uses epoch 0.
    """
    key = (seed & _WORD) | stream << 64
    return np.random.Generator(np.random.Philox(key=key, counter=index << 128 | epoch << 192))


class CropPlan:
    """Cut tracks into crops; between epochs, only the start of an index's crop changes.

    A track that holds `n` crop lengths gives `n` crops per epoch, one drawn uniformly from each of
    `n` equal strata of its possible starts. The crops cover all parts of the track, with other cuts
    in each epoch. Neighbours may overlap or leave gaps: of five minutes in 5 s crops, one epoch
    reads 83 %, two read 96 % and three 98 %. (Stock fairseq reads one crop per track and epoch:
    1/60.)

    Attributes:
        num_samples: `[num_tracks]` lengths of the others.
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
            num_samples: `[tracks]` lengths.
            crop_samples: samples of a crop; a shorter track gives one crop of its own length.
            hop: starts are multiples of this many samples.
            min_samples: tracks shorter than this are left out.
            crops_per_track: per epoch, instead of as many as fit.
        """
        long_enough = num_samples >= min_samples
        self._tracks = np.flatnonzero(long_enough)
        self.num_samples = num_samples[self._tracks]
        self.num_too_short = len(num_samples) - len(self._tracks)
        if crops_per_track is None:
            counts = np.maximum(1, self.num_samples // crop_samples)
        else:
            counts = np.full(len(self._tracks), crops_per_track, np.int64)
        self._ends = np.cumsum(counts)
        self.crop_samples = crop_samples
        self._hop = hop
        self._seed = seed

    def __len__(self) -> int:
        """Return the number of crops per epoch."""
        return int(self._ends[-1]) if len(self._ends) else 0

    @property
    def num_tracks(self) -> int:
        """Tracks that are long enough."""
        return len(self._tracks)

    @property
    def lengths(self) -> np.ndarray:
        """Samples per crop, `[len]` int32; not stored, because crops can be many millions."""
        lengths = np.minimum(self.num_samples, self.crop_samples).astype(np.int32)
        return np.repeat(lengths, np.diff(self._ends, prepend=0))

    def length(self, index: int) -> int:
        """Return the samples of one crop."""
        entry = np.searchsorted(self._ends, index, side="right")
        return min(int(self.num_samples[entry]), self.crop_samples)

    def crop(self, index: int, epoch: int) -> tuple[int, int, int]:
        """Return a crop's track (as numbered by `num_samples`), first sample, and samples.

        Raises IndexError if `index` is not in [0, len).
        """
        if not 0 <= index < len(self):
            raise IndexError(f"crop {index} of {len(self)}")
        entry = int(np.searchsorted(self._ends, index, side="right"))
        first = int(self._ends[entry - 1]) if entry else 0
        count = int(self._ends[entry]) - first
        num_samples = int(self.num_samples[entry])
        if num_samples <= self.crop_samples:
            return int(self._tracks[entry]), 0, num_samples
        starts = (num_samples - self.crop_samples) // self._hop + 1
        low = (index - first) * starts // count
        high = max(low + 1, (index - first + 1) * starts // count)
        start = int(generator(self._seed, epoch, index, CROPS).integers(low, high)) * self._hop
        return int(self._tracks[entry]), start, self.crop_samples

    def order(self, epoch: int, shuffle: bool = True) -> np.ndarray:
        """Return the order in which to batch: full crops, then shorter ones, longest first.

        A permutation, `[len]` int64. With `shuffle`, the full crops, and shorter ones of equal
        length, are in random order. All batches but the last few have crops of one length and need
        no padding. (fairseq shuffles the batches afterwards.)
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
