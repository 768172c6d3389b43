"""A layer of a pre-trained model: the features of HuBERT's second iteration.

A frame depends on all of the audio that goes through the model with it. Tracks are therefore cut
into windows that their length alone decides (`upstream.windows`), and a frame's features are those
of its window, or of two that fade into each other, whichever part of the track is asked for.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from music_ssl_fairseq import upstream
from music_ssl_fairseq.features.framewise import Piece
from music_ssl_fairseq.frames import SAMPLE_RATE
from music_ssl_fairseq.upstream.windows import Window, Windowing, covering, plan

_GPU_BATCH = 8  # windows of 30 s that go through a model on a GPU together


class _Job(NamedTuple):
    piece: int
    window: Window


class Deep:
    """Hidden states of a layer of any checkpoint that `upstream.load` opens.

    Layers above it are not computed.

    Args:
        checkpoint: file or folder.
        layer: 0 for the extractor's projected output, n for the n-th Transformer layer's.
        device: as torch names it.
        windowing: how tracks are cut.

    Raises:
        InputError: if the checkpoint cannot be read, or has no such layer.
    """

    piece_frames = 30_000  # ten minutes, 92 MB of 768 values

    def __init__(
        self, checkpoint: str, layer: int, device: str = "cpu", windowing: Windowing | None = None
    ):
        self.upstream = upstream.load(checkpoint, device)
        (self.layer,) = self.upstream.check_layers([layer])
        self.fingerprint = self.upstream.fingerprint
        encoder = self.upstream.model.encoder
        encoder.layers = encoder.layers[:layer]
        self.grid = self.upstream.grid
        self.frame_rate = self.upstream.frame_rate
        self.dimension = self.upstream.dimension
        self.windowing = windowing or Windowing()
        self._window = self.grid.num_samples(
            self.grid.num_frames(round(self.windowing.seconds * SAMPLE_RATE))
        )
        self._batch = 1 if self.upstream.device.type == "cpu" else _GPU_BATCH

    def features(self, waveform: np.ndarray) -> np.ndarray:
        """`[T]` float32, nominally in [-1, 1], 16 kHz, to `[frames, dimension]` float32."""
        length = len(waveform)
        whole = Piece(waveform, 0, length, 0, self.grid.num_frames(length))
        return self.features_of([whole])[0]

    def span(self, num_samples: int, first: int, last: int) -> tuple[int, int]:
        """The samples `[start, stop)` of a track that its frames `[first, last)` need."""
        windows = self._windows(num_samples, first, last)
        if not windows:
            return 0, 0
        return windows[0].start, windows[-1].start + windows[-1].num_samples

    def features_of(self, pieces: Sequence[Piece]) -> list[np.ndarray]:
        """`[last - first, dimension]` float32 of each piece: those frames of the whole track."""
        return [values.cpu().numpy() for values in self.tensors_of(pieces)]

    def tensors_of(self, pieces: Sequence[Piece]) -> list[Tensor]:
        """As `features_of`, on the model's device."""
        device = self.upstream.device
        found = [torch.zeros(p.last - p.first, self.dimension, device=device) for p in pieces]
        for jobs in self._batches(pieces):
            hidden = self._hidden(np.stack([_audio(pieces[i], window) for i, window in jobs]))
            for (i, window), values in zip(jobs, hidden, strict=False):
                _add(found[i], pieces[i], window, values)
        return found

    def _hidden(self, waveforms: np.ndarray) -> Tensor:
        """`[B, T]` to the layer's `[B or more, frames, dimension]`."""
        batch = torch.from_numpy(waveforms)
        if batch.size(1) == self._window:
            # Always of the same size, because rounding may depend on it.
            batch = torch.nn.functional.pad(batch, (0, 0, 0, self._batch - len(batch)))
        return self.upstream.hidden_states(batch)[self.layer].float()

    def _windows(self, num_samples: int, first: int, last: int) -> list[Window]:
        return covering(plan(num_samples, self.grid, self.windowing), first, last)

    def _batches(self, pieces: Sequence[Piece]) -> Iterator[list[_Job]]:
        """What goes through the model together: windows of long tracks, or one short track."""
        together: list[_Job] = []
        for i, piece in enumerate(pieces):
            for window in self._windows(piece.num_samples, piece.first, piece.last):
                if window.num_samples != self._window:
                    yield [_Job(i, window)]
                    continue
                together.append(_Job(i, window))
                if len(together) == self._batch:
                    yield together
                    together = []
        if together:
            yield together


def _audio(piece: Piece, window: Window) -> np.ndarray:
    start = window.start - piece.start
    return piece.waveform[start : start + window.num_samples]


def _add(found: Tensor, piece: Piece, window: Window, values: Tensor) -> None:
    """Add a window's share `[num_frames, D]` to the piece's frames."""
    first, last = max(piece.first, window.first), min(piece.last, window.last)
    inside = slice(first - window.first, last - window.first)
    weights = torch.from_numpy(window.weights[inside]).to(values.device)
    found[first - piece.first : last - piece.first] += weights.unsqueeze(-1) * values[inside]
