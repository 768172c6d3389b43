"""Windows of a split as audio, for an encoder that is trained along with its head."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from music_ssl_fairseq.frames import FrameGrid
from music_ssl_fairseq.probing.dataset import ProbingDataset
from music_ssl_fairseq.probing.features.cache import Clip
from music_ssl_fairseq.probing.features.fill import WindowPlan, length_of, read_part, samples_of
from music_ssl_fairseq.probing.labels import ProbingSplit


class WaveformDataset(ProbingDataset):
    """`ProbingDataset`, with the same windows in the same order, as waveforms `[T]`."""

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
        self._begins = np.concatenate([[0], np.cumsum(self.windows_per_clip)])

    def features(self, index: int) -> np.ndarray:
        """Return the samples of a window, `[T]` float32 at 16 kHz."""
        number = int(self._clip_of[index])
        clip, frames = self.clips[number], self._plan.frames
        window = self._plan.windows(clip)[index - int(self._begins[number])]
        stop = min(clip.stop, window.start + length_of(window, self._grid, frames))
        samples = read_part(self._grid, clip, window.start, stop)
        return samples_of(samples, 0, window, self._grid, frames)

    def net_input(self, samples: list[dict[str, Any]]) -> dict[str, Any]:
        """Return `waveform` `[B, T]`, zeros after each window's end, `lengths` and `counts`."""
        waveforms = [sample["features"] for sample in samples]
        lengths = [len(waveform) for waveform in waveforms]
        padded = np.stack([np.pad(w, (0, max(lengths) - len(w))) for w in waveforms])
        return {
            "waveform": torch.from_numpy(padded),
            "lengths": torch.tensor(lengths),
            "counts": [len(sample["target"]) for sample in samples],
        }
