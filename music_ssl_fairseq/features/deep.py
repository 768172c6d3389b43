"""Compute a layer of a pre-trained model: the features of HuBERT's second iteration.

A frame depends on all of the audio that goes through the model with it. Tracks are therefore cut
into windows and sections that their length alone decides (`upstream.windows`), and a frame's
features are those of its window, or of two that fade into each other, whichever part of the track
is asked for.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from music_ssl_fairseq import upstream
from music_ssl_fairseq.features.framewise import Chunk
from music_ssl_fairseq.upstream.model import Upstream
from music_ssl_fairseq.upstream.windows import (
    Section,
    Statistics,
    Window,
    Windowing,
    add_share,
    joined,
    sections,
)

_WINDOWS_PER_GPU_BATCH = 8  # of 30 s


class _Job(NamedTuple):
    """A window of a chunk: its audio `[1, T]`, its section's statistics, its frames' weights."""

    chunk: int
    window: Window
    audio: Tensor
    statistics: Statistics | None
    weights: Tensor


class Deep:
    """Hidden states of a layer of any checkpoint that `upstream.load` opens.

    Layers above it are not computed.

    Raises InputError if the checkpoint cannot be read, or has no such layer.

    Args:
        checkpoint: file or folder.
        layer: 0 for the extractor's projected output, n for the n-th Transformer layer's.
        device: as torch names it.
        windowing: how tracks are cut.
    """

    chunk_frames = 30_000  # ten minutes, 92 MB of 768 values

    def __init__(
        self, checkpoint: str, layer: int, device: str = "cpu", windowing: Windowing | None = None
    ):
        self.upstream: Upstream = upstream.load(checkpoint, device)
        (self.layer,) = self.upstream.check_layers([layer])
        self.fingerprint = self.upstream.fingerprint
        self.upstream.drop_above(self.layer)
        self.grid = self.upstream.grid
        self.dimension = self.upstream.dimension
        self.windowing = windowing or Windowing()
        window = self.windowing.seconds - self.windowing.overlap
        self.min_chunk_frames = round(window * self.grid.rate)
        self._batch = 1 if self.upstream.device.type == "cpu" else _WINDOWS_PER_GPU_BATCH

    def features(self, waveform: np.ndarray) -> np.ndarray:
        """Map `[T]` float32, nominally in [-1, 1], 16 kHz, to `[frames, dimension]` float32."""
        length = len(waveform)
        whole = Chunk(waveform, 0, length, 0, self.grid.num_frames(length))
        return self.features_of([whole])[0]

    def samples_for(self, num_samples: int, first: int, last: int) -> tuple[int, int]:
        """Return the samples `[start, stop)` of a track that its frames `[first, last)` need."""
        needed = self._sections(num_samples, first, last)
        if not needed:
            return 0, 0
        return needed[0].start, needed[-1].start + needed[-1].num_samples

    def features_of(self, chunks: Sequence[Chunk]) -> list[np.ndarray]:
        """Return `[last - first, dimension]` float32 per chunk: those frames of the whole track."""
        return [values.cpu().numpy() for values in self.tensors_of(chunks)]

    @torch.no_grad()
    def tensors_of(self, chunks: Sequence[Chunk]) -> list[Tensor]:
        """Return what `features_of` does, on the model's device."""
        device = self.upstream.device
        found = [torch.zeros(p.last - p.first, self.dimension, device=device) for p in chunks]
        # Everything is sent to the GPU first, because each transfer waits for it.
        jobs = [job for i, chunk in enumerate(chunks) for job in self._jobs(i, chunk)]
        if not jobs:
            return found
        sent = torch.cat([job.weights for job in jobs]).to(device)
        weights = sent.split([len(job.weights) for job in jobs])
        jobs = [job._replace(weights=own) for job, own in zip(jobs, weights, strict=True)]
        for together in self._batches(jobs):
            for job, values in zip(together, self._values(together), strict=False):
                add_share(
                    found[job.chunk], chunks[job.chunk].first, job.window, values, job.weights
                )
        return found

    def _sections(self, num_samples: int, first: int, last: int) -> list[Section]:
        found = sections(num_samples, self.grid, self.windowing)
        return [s for s in found if any(_counts(window, first, last) for window in s.windows)]

    def _batches(self, jobs: Sequence[_Job]) -> Iterator[list[_Job]]:
        """Yield jobs for the model to do together: windows of long tracks, or one short track."""
        together: list[_Job] = []
        for job in jobs:
            if job.statistics is None:
                yield [job]
                continue
            together.append(job)
            if len(together) == self._batch:
                yield together
                together = []
        if together:
            yield together

    def _jobs(self, number: int, chunk: Chunk) -> Iterator[_Job]:
        """Yield a job per window that the chunk's frames need, with its audio on the device."""
        for section in self._sections(chunk.num_samples, chunk.first, chunk.last):
            start = section.start - chunk.start
            audio = torch.from_numpy(chunk.waveform[None, start : start + section.num_samples])
            audio = audio.to(self.upstream.device)
            statistics = self.upstream.statistics(audio) if len(section.windows) > 1 else None
            for window in section.windows:
                if _counts(window, chunk.first, chunk.last):
                    weights = torch.from_numpy(window.weights)
                    yield _Job(number, window, section.part(audio, window), statistics, weights)

    def _values(self, jobs: list[_Job]) -> Tensor:
        """Return `[B, frames, dimension]` of the jobs; B may be larger than their number."""
        if jobs[0].statistics is None:
            return self.upstream.raw_layers(jobs[0].audio)[self.layer].float()
        # A constant number, because rounding may depend on it.
        filled = jobs + [jobs[-1]] * (self._batch - len(jobs))
        waveforms = torch.cat([job.audio for job in filled])
        statistics = joined([job.statistics for job in filled if job.statistics is not None])
        hidden = self.upstream.raw_layers(waveforms, statistics=statistics)
        return hidden[self.layer].float()


def _counts(window: Window, first: int, last: int) -> bool:
    """Return whether a window has a share in a track's frames `[first, last)`."""
    inside = window.weights[max(0, first - window.first) : max(0, last - window.first)]
    return bool(inside.any())
