"""Windows of a split with their features, or audio, and labels, as a fairseq dataset."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from fairseq.data import FairseqDataset

from music_ssl_fairseq.frames import SAMPLE_RATE, FrameGrid
from music_ssl_fairseq.probing.features.cache import Clip, FeatureCache
from music_ssl_fairseq.probing.features.fill import WindowPlan, length_of, read_part, samples_of
from music_ssl_fairseq.probing.features.windows import FRAME_HOP, FRAME_RATE
from music_ssl_fairseq.probing.labels import ProbingSplit

NEIGHBOUR_WEIGHT = 0.5
"""Target of the frames beside a beat's: an annotation is no more precise than that."""


class ProbingDataset(FairseqDataset):
    """Windows: feature vectors `[vectors, layers, D]`, and the label of their clip.

    A window has one vector, or, for beats, one per frame. The order in training follows from
    (seed, epoch); in evaluation it is that of the manifest, clip by clip.
    """

    def __init__(
        self,
        split: ProbingSplit,
        clips: Sequence[Clip],
        cache: FeatureCache | None,
        plan: WindowPlan,
        seed: int,
        shuffle: bool,
        batches_at_once: int = 1,
    ):
        """Note the windows.

        Args:
            cache: of features; None for a subclass that has them from elsewhere.
            batches_at_once: mini-batches per batch of fairseq's.
        """
        self.split = split
        self.clips = clips
        self._cache = cache
        self._seed = seed
        self._shuffle = shuffle
        self._epoch = 1
        self._at_once = batches_at_once
        self.batch_size = len(clips)  # of a mini-batch, in windows
        self._per_frame = plan.per_frame
        counts = [plan.vector_counts(clip) for clip in clips]
        self._clip_of = np.repeat(np.arange(len(clips)), [len(count) for count in counts])
        self._count = np.concatenate([np.array(count, np.int64) for count in counts])
        self._first = np.concatenate([np.cumsum([0, *count[:-1]]) for count in counts])

    def __len__(self) -> int:
        return len(self._clip_of)

    @property
    def windows_per_clip(self) -> np.ndarray:
        """Windows per clip: `[clips]` int64."""
        return np.bincount(self._clip_of, minlength=len(self.clips))

    def features(self, index: int) -> np.ndarray:
        """Return a window's features, `[vectors, layers, D]`."""
        assert self._cache is not None
        first, count = self._first[index], self._count[index]
        return self._cache.vectors(self.clips[self._clip_of[index]].key)[first : first + count]

    def __getitem__(self, index: int) -> int:
        """Return a window's number, by which `collater` reads it."""
        return index

    def _beat_targets(self, clip: int) -> np.ndarray:
        """Return the targets of a whole clip, `[frames]` float32: 1 at a beat, 0.5 beside one."""
        length = (self.clips[clip].stop - self.clips[clip].start) // FRAME_HOP + 2
        target = np.zeros(length, np.float32)
        start = self.clips[clip].start / SAMPLE_RATE
        frames = np.round((self.split.beats[clip].times - start) * FRAME_RATE).astype(int)
        for offset, value in ((-1, NEIGHBOUR_WEIGHT), (1, NEIGHBOUR_WEIGHT), (0, 1.0)):
            places = frames + offset
            target[places[(places >= 0) & (places < length)]] = value
        return target

    def beat_times(self, clip: int) -> np.ndarray:
        """Return a clip's beats in seconds from its first sample."""
        start, stop = self.clips[clip].start / SAMPLE_RATE, self.clips[clip].stop / SAMPLE_RATE
        times = self.split.beats[clip].times
        return times[(times >= start) & (times < stop)] - start

    def describe_crop(self, index: int, epoch: int) -> tuple[str, float]:
        """Return a window's track and its largest feature, for messages about a batch."""
        clip = self.clips[self._clip_of[index]]
        return clip.path, float(np.abs(self.features(index)).max())

    def collater(self, samples: Sequence[int] | np.ndarray) -> dict[str, Any]:
        """Read and batch B windows, given by their numbers.

        `net_input.features` is `[N, layers, D]`, N the vectors of all windows; `target` `[N, ...]`;
        `clip` and `first` `[B]`, the place of the first vector in its clip; `sizes` a list of the
        windows' vectors; `batch_size` the windows per mini-batch.
        """
        if not len(samples):
            return {}
        windows = np.asarray(samples)
        return {
            "id": torch.from_numpy(windows),
            "nsentences": len(windows),
            "ntokens": int(self._count[windows].sum()),
            "clip": torch.from_numpy(self._clip_of[windows]),
            "first": torch.from_numpy(self._first[windows]),
            "sizes": self._count[windows].tolist(),
            "batch_size": self.batch_size,
            "target": torch.from_numpy(self._targets(windows)),
            "net_input": self.net_input(windows),
        }

    def _targets(self, windows: np.ndarray) -> np.ndarray:
        if not self._per_frame:
            targets = self.split.targets[self._clip_of[windows]]
            return targets.astype(np.float32) if targets.dtype == bool else targets
        ends = zip(self._first[windows], self._first[windows] + self._count[windows], strict=True)
        clips = map(self._beat_targets, self._clip_of[windows])
        return np.concatenate([clip[a:b] for clip, (a, b) in zip(clips, ends, strict=True)])

    def net_input(self, windows: np.ndarray) -> dict[str, Any]:
        """Return what the model takes."""
        features = np.concatenate([self.features(window) for window in windows])
        return {"features": torch.from_numpy(features)}

    def size(self, index: int) -> int:
        """Return how many vectors a window has."""
        return int(self._count[index])

    def ordered_indices(self) -> np.ndarray:
        """Return all windows; shuffled in training."""
        if not self._shuffle:
            return np.arange(len(self))
        return np.random.default_rng([self._seed, self._epoch]).permutation(len(self))

    def batch_by_size(
        self,
        indices: np.ndarray,
        max_tokens: int | None = None,
        max_sentences: int | None = None,
        required_batch_size_multiple: int = 1,
    ) -> list[np.ndarray]:
        """Cut into batches of `batches_at_once` mini-batches of `max_sentences` windows each.

        The last one may be shorter; fairseq's own method would drop it.
        """
        self.batch_size = max_sentences or 64
        size = self.batch_size * self._at_once
        return [indices[first : first + size] for first in range(0, len(indices), size)]

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch that the training order follows from."""
        self._epoch = epoch

    @property
    def can_reuse_epoch_itr_across_epochs(self) -> bool:
        """True in evaluation, where all epochs have the same order."""
        return not self._shuffle


class WaveformDataset(ProbingDataset):
    """`ProbingDataset` with windows as waveforms `[T]`, for an encoder that is trained along."""

    def __init__(
        self,
        split: ProbingSplit,
        clips: Sequence[Clip],
        grid: FrameGrid,
        plan: WindowPlan,
        *order: Any,
    ):
        """Note the windows; `grid` is the encoder's, `order` as of `ProbingDataset`."""
        super().__init__(split, clips, None, plan, *order)
        self._grid = grid
        self._plan = plan
        self._first_window = np.concatenate([[0], np.cumsum(self.windows_per_clip)])  # of a clip

    def features(self, index: int) -> np.ndarray:
        """Return the samples of a window, `[T]` float32 at 16 kHz."""
        place = int(self._clip_of[index])
        clip, per_frame = self.clips[place], self._plan.per_frame
        window = self._plan.windows(clip)[index - int(self._first_window[place])]
        stop = min(clip.stop, window.start + length_of(window, self._grid, per_frame))
        samples = read_part(self._grid, clip, window.start, stop)
        return samples_of(samples, 0, window, self._grid, per_frame)

    def net_input(self, windows: np.ndarray) -> dict[str, Any]:
        """Return `waveform` `[B, T]`, zeros after each window's end, `lengths` and `counts`."""
        waveforms = [self.features(window) for window in windows]
        lengths = [len(waveform) for waveform in waveforms]
        padded = np.stack([np.pad(w, (0, max(lengths) - len(w))) for w in waveforms])
        return {
            "waveform": torch.from_numpy(padded),
            "lengths": torch.tensor(lengths),
            "counts": self._count[windows].tolist(),
        }
