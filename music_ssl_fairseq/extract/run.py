"""The loop: batches in, features out, with reading, copying and computing at the same time."""

import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from tqdm import tqdm

from music_ssl_fairseq.data.manifest import Manifest
from music_ssl_fairseq.errors import InputError
from music_ssl_fairseq.extract.batches import Cut
from music_ssl_fairseq.extract.reading import Batch, read_batches
from music_ssl_fairseq.extract.store import FrameStore, MeanStore
from music_ssl_fairseq.frames import SAMPLE_RATE
from music_ssl_fairseq.upstream.model import Upstream, too_short
from music_ssl_fairseq.upstream.windows import Windowing

_AHEAD = 2  # batches whose results are on their way while the next is being computed


@dataclass
class Outcome:
    """What a run did: tracks done and seconds of audio in them, and what was left out, and why."""

    tracks: int = 0
    seconds: float = 0.0
    wall: float = 0.0
    left_out: dict[int, str] = field(default_factory=dict)


class Extraction:
    """Features of some layers of one model.

    Args:
        layers: which ones; those above the last are not computed.
        frames: numpy's name of the type in which every frame is kept, or None for the mean over
            each track's frames.
        windowing: how long tracks are cut.
        batch_seconds: audio that goes through the model together.
        compile: run batches of whole windows as compiled kernels.
    """

    def __init__(
        self,
        upstream: Upstream,
        layers: list[int],
        frames: str | None,
        windowing: Windowing,
        batch_seconds: float,
        compile: bool = False,
    ):
        self.upstream = upstream
        self.layers = upstream.check_layers(layers)
        self.frames = frames
        self.windowing = windowing
        self.batch_seconds = batch_seconds
        window = upstream.grid.num_frames(round(windowing.seconds * SAMPLE_RATE))
        length = upstream.grid.num_samples(window)
        full = max(1, int(batch_seconds * SAMPLE_RATE // length))
        self._compiled_shape = (full, length) if compile else None

    def run(
        self, manifest: Manifest, store: MeanStore | FrameStore, workers: int, bar: tqdm
    ) -> Outcome:
        """Extract every track that the store does not have."""
        cut = store.cut
        outcome = Outcome()
        todo = [track for track in range(len(manifest)) if not store.has(track)]
        for track in [track for track in todo if not cut.num_frames(track)]:
            samples = int(manifest.num_samples[track])
            outcome.left_out[track] = too_short(samples, SAMPLE_RATE, cut.grid)
        todo = [track for track in todo if track not in outcome.left_out]
        bar.reset(total=round(sum(cut.num_frames(t) for t in todo) / self.upstream.frame_rate))
        batches = cut.batches(todo, self.batch_seconds)
        on_gpu = self.upstream.device.type == "cuda"
        begin = time.perf_counter()
        for batch, values in self._computed(read_batches(manifest, batches, workers, on_gpu), cut):
            self._store(batch, values, store, outcome, bar)
        outcome.wall = time.perf_counter() - begin
        return outcome

    def _computed(self, batches: Iterator[Batch], cut: Cut) -> Iterator[tuple[Batch, Tensor]]:
        """The batches with their features, which have had the time of `_AHEAD` batches to come."""
        coming: deque[tuple[Batch, _Coming]] = deque()
        for batch in batches:
            coming.append((batch, self._start(batch, cut)))
            if len(coming) > _AHEAD:
                earlier, values = coming.popleft()
                yield earlier, values.wait()
        for earlier, values in coming:
            yield earlier, values.wait()

    @torch.no_grad()
    def _start(self, batch: Batch, cut: Cut) -> "_Coming":
        """Put a batch to work."""
        device = self.upstream.device
        try:
            waveform = batch.waveform.to(device, non_blocking=True)
            compile = tuple(waveform.shape) == self._compiled_shape
            hidden = self.upstream.hidden_states(waveform, compile=compile)
            chosen = [hidden[layer] for layer in self.layers]
            if self.frames is not None:
                dtype = getattr(torch, self.frames)
                return _coming(torch.stack([layer.to(dtype) for layer in chosen], 1))
            weights = torch.stack(
                [torch.from_numpy(cut.windows(p.track)[p.number].weights) for p in batch.pieces]
            )
            weights = weights.to(device, non_blocking=True).unsqueeze(-1)
            return _coming(torch.stack([(x.float() * weights).sum(1) for x in chosen], 1))
        except torch.OutOfMemoryError:
            raise InputError(
                f"{self.batch_seconds:g} s of audio in a batch is more than the GPU's memory "
                "holds: give a smaller --batch-seconds"
            ) from None

    def _store(
        self,
        batch: Batch,
        values: Tensor,
        store: MeanStore | FrameStore,
        outcome: Outcome,
        bar: tqdm,
    ) -> None:
        for piece, reason, features in zip(batch.pieces, batch.reasons, values, strict=True):
            if reason and piece.track not in outcome.left_out:
                outcome.left_out[piece.track] = reason
                store.leave_out(piece.track)
            if piece.track in outcome.left_out:
                continue
            window = store.cut.windows(piece.track)[piece.number]
            store.add(piece.track, window, features)
            seconds = window.done / self.upstream.frame_rate
            outcome.seconds += seconds
            outcome.tracks += window.last == store.cut.num_frames(piece.track)
            bar.update(seconds)


class _Coming(NamedTuple):
    """A tensor on its way from the GPU."""

    values: Tensor
    arrived: torch.cuda.Event | None

    def wait(self) -> Tensor:
        if self.arrived is not None:
            self.arrived.synchronize()
        return self.values


def _coming(values: Tensor) -> _Coming:
    if not values.is_cuda:
        return _Coming(values, None)
    there = torch.empty(values.shape, dtype=values.dtype, pin_memory=True)
    there.copy_(values, non_blocking=True)
    arrived = torch.cuda.Event()
    arrived.record()
    return _Coming(there, arrived)


def open_store(extraction: Extraction, manifest: Manifest, folder: Path) -> MeanStore | FrameStore:
    """The store that fits what is extracted, in `folder`."""
    upstream = extraction.upstream
    cut = Cut(manifest, upstream.grid, extraction.windowing)
    sizes = (len(extraction.layers), upstream.dimension)
    if extraction.frames is None:
        return MeanStore(folder, cut, *sizes)
    return FrameStore(folder, cut, *sizes, extraction.frames)
