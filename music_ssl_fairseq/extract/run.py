"""The loop of extraction: read, compute and copy batches at the same time; report the outcome."""

import sys
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from music_ssl_fairseq.data.left_out import REPORT, LeftOut, write_left_out
from music_ssl_fairseq.data.manifest import Manifest
from music_ssl_fairseq.errors import InputError, one_line
from music_ssl_fairseq.extract.batches import (
    Batch,
    Load,
    QueuedWindow,
    batches,
    read_loads,
    stacked,
)
from music_ssl_fairseq.extract.store import Store
from music_ssl_fairseq.frames import SAMPLE_RATE, amount, counted, samples_in
from music_ssl_fairseq.runtime.delayed_fetch import Fetch, start_fetch
from music_ssl_fairseq.runtime.files import checksum
from music_ssl_fairseq.runtime.user_command import with_option
from music_ssl_fairseq.upstream.model import Upstream, too_short
from music_ssl_fairseq.upstream.windows import Windowing

# Attributes of a model that decide its features.
_OF_THE_MODEL = (
    "family", "fingerprint", "dimension", "sample_rate", "frame_rate", "normalise", "precision",
)  # fmt: skip
_BATCHES_IN_FLIGHT = 2  # their results are copied while the next batch is computed


@dataclass
class Outcome:
    """The result of a run: tracks done, seconds of their audio, and reasons for those left out."""

    tracks: int = 0
    seconds: float = 0.0
    wall: float = 0.0
    left_out: dict[int, str] = field(default_factory=dict)


@dataclass
class Extraction:
    """Compute features of some layers of one model."""

    upstream: Upstream
    layers: list[int]  # from 0; those above the last are not computed
    # numpy's name of the type in which every frame is kept; None for the mean over a track's frames
    frames: str | None
    windowing: Windowing  # how long tracks are cut
    batch_seconds: float  # of audio that goes through the model together
    compile: bool = False  # run batches of whole windows as compiled kernels

    @cached_property
    def _compiled_shape(self) -> tuple[int, int] | None:
        grid = self.upstream.grid
        length = grid.num_samples(grid.num_frames(samples_in(self.windowing.seconds)))
        full = max(1, int(self.batch_seconds * SAMPLE_RATE // length))
        return (full, length) if self.compile else None

    def settings(self, tracks: Manifest) -> dict[str, Any]:
        """Return the settings that decide the features, and must be equal for a run to resume."""
        return {
            **{name: getattr(self.upstream, name) for name in _OF_THE_MODEL},
            "layers": self.layers,
            "pool": "frames" if self.frames else "mean",
            "dtype": self.frames or "float32",
            "windows": asdict(self.windowing),
            "manifest": checksum(tracks.file),
        }

    def run(self, manifest: Manifest, store: Store, workers: int, bar: tqdm) -> Outcome:
        """Extract every track that the store does not have, or leave it out with a reason."""
        cut = store.cut
        outcome = Outcome(left_out=store.left_out)
        missing = [track for track in range(len(manifest)) if not store.has(track)]
        todo = [track for track in missing if cut.num_frames(track)]
        for track in sorted(set(missing) - set(todo)):
            samples = int(manifest.num_samples[track])
            store.leave_out(track, too_short(samples, SAMPLE_RATE, cut.grid))
        bar.reset(total=round(sum(cut.num_frames(t) for t in todo) / self.upstream.frame_rate))
        begin = time.perf_counter()
        loads = read_loads(manifest, cut.loads(todo), workers, self.upstream.device)
        ready = batches(self._windows(loads, store), self.batch_seconds)
        for batch, values in self._computed(ready):
            for queued, features in zip(batch, values, strict=True):
                if not torch.isfinite(features).all():
                    hint = ", or too large for float16: give --dtype float32"
                    reason = f"its features are not finite{hint * (self.frames == 'float16')}"
                    store.leave_out(queued.track, reason)
                if queued.track in store.left_out:  # perhaps since its first windows were read
                    continue
                store.add(queued.track, queued.window, features)
                seconds = queued.window.done / self.upstream.frame_rate
                outcome.seconds += seconds
                outcome.tracks += queued.window.last == cut.num_frames(queued.track)
                bar.update(min(seconds, bar.total - bar.n))  # the total is rounded
        outcome.wall = time.perf_counter() - begin
        return outcome

    def _windows(self, loads: Iterator[Load], store: Store) -> Iterator[QueuedWindow]:
        """Yield the windows of what was read, on the model's device."""
        for load in loads:
            waveform = load.waveform.to(self.upstream.device, non_blocking=True)
            for (track, section), reason, samples in load.pieces(waveform):
                if reason:
                    store.leave_out(track, reason)
                if track in store.left_out:
                    continue
                if len(section.windows) == 1:
                    # A copy, so that a held track does not keep the whole load in memory.
                    yield QueuedWindow(track, section.windows[0], samples.clone(), None)
                    continue
                statistics = self.upstream.statistics(samples.unsqueeze(0))
                for window in section.windows:
                    yield QueuedWindow(track, window, section.part(samples, window), statistics)

    def _computed(self, ready: Iterator[Batch]) -> Iterator[tuple[Batch, Tensor]]:
        """Yield batches with their features, `_BATCHES_IN_FLIGHT` batches after their start."""
        in_flight: deque[tuple[Batch, Fetch]] = deque()
        for batch in ready:
            in_flight.append((batch, self._start(batch)))
            if len(in_flight) > _BATCHES_IN_FLIGHT:
                earlier, values = in_flight.popleft()
                yield earlier, values.wait()
        for earlier, values in in_flight:
            yield earlier, values.wait()

    @torch.no_grad()
    def _start(self, batch: Batch) -> Fetch:
        """Start a batch: the result is `[B, layers, D]`, or `[B, layers, frames, D]`."""
        waveform, statistics, weights = stacked(batch)
        compile = tuple(waveform.shape) == self._compiled_shape
        try:
            hidden = self.upstream.raw_layers(waveform, None, compile, statistics)
            chosen = [hidden[layer] for layer in self.layers]
            if self.frames is not None:
                dtype = getattr(torch, self.frames)
                return start_fetch(torch.stack([layer.to(dtype) for layer in chosen], 1))
            # From pageable memory, the copy would wait for all queued kernels.
            weights = weights.pin_memory() if waveform.is_cuda else weights
            shares = weights.to(waveform.device, non_blocking=True).unsqueeze(-1)
            return start_fetch(torch.stack([(x.float() * shares).sum(1) for x in chosen], 1))
        except torch.OutOfMemoryError:
            raise InputError(
                f"{self.batch_seconds:g} s of audio in a batch is more than the GPU's memory "
                "holds: give a smaller --batch-seconds",
                with_option("--batch-seconds", f"{self.batch_seconds / 2:g}"),
            ) from None


def report(out: Path, tracks: Manifest, outcome: Outcome) -> None:
    """Write left_out.tsv, and print what was done."""
    file = out / REPORT
    file.unlink(missing_ok=True)
    if outcome.left_out:
        left_out = [
            LeftOut(tracks.name(track), why) for track, why in sorted(outcome.left_out.items())
        ]
        write_left_out(file, left_out)
        for item in left_out[:10]:
            print(f"left out: {one_line(item.name)}: {item.reason}", file=sys.stderr)
        print(f"{len(left_out)} of {len(tracks)} tracks were left out: {file}", file=sys.stderr)
    if not outcome.tracks:
        if not outcome.left_out:
            print(f"{out}: finished already, {counted(len(tracks), 'track')}")
        return
    rate = outcome.seconds / outcome.wall
    print(
        f"{out}: {counted(outcome.tracks, 'track')}, {amount(outcome.seconds / 3600)} of audio in "
        f"{outcome.wall:.0f} s: {rate:.1f} audio-s/s"
    )
