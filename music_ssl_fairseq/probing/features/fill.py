"""Computing the features that a cache lacks: files are read ahead, windows encoded in batches."""

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from tqdm import tqdm

from music_ssl_fairseq import audio
from music_ssl_fairseq.errors import AudioError
from music_ssl_fairseq.frames import SAMPLE_RATE
from music_ssl_fairseq.probing.features.cache import Clip, FeatureStore
from music_ssl_fairseq.probing.features.source import Source
from music_ssl_fairseq.probing.features.windows import (
    Window,
    clip_windows,
    frame_windows,
    frames_of,
)
from music_ssl_fairseq.runtime.cpus import available_cpus

_READ_AHEAD = 8  # clips a thread
_CLIPS_AT_ONCE = 64  # clips whose windows are encoded together


@dataclass(frozen=True)
class Plan:
    """How features are made.

    Attributes:
        seconds: length of a window; 0 for the whole clip.
        frames: one feature a frame (50 a second) and not one a window.
        batch_seconds: audio that goes through the encoder at once.
    """

    seconds: float
    frames: bool
    batch_seconds: float = 40.0

    @property
    def dtype(self) -> type:
        """Frames are many and kept in half precision; means of windows are few."""
        return np.float16 if self.frames else np.float32

    def windows(self, clip: Clip) -> list[Window]:
        """The windows of a clip."""
        cut = frame_windows if self.frames else clip_windows
        return cut(clip.start, clip.stop, round(self.seconds * SAMPLE_RATE))

    def row_counts(self, clip: Clip) -> list[int]:
        """Rows of features that each of them has."""
        return [frames_of(window) if self.frames else 1 for window in self.windows(clip)]


def identity(source: Source, plan: Plan) -> dict[str, object]:
    """What tells these features from others, for `FeatureStore`."""
    return {
        "fingerprint": source.fingerprint,
        "window_seconds": plan.seconds,
        "kind": "frames" if plan.frames else "windows",
        "layers": len(source.layers),
    }


def fill(store: FeatureStore, source: Source, plan: Plan, clips: Sequence[Clip]) -> None:
    """Compute the features of all clips that the store does not have.

    An interrupted call leaves what it has computed in the store.

    Raises:
        AudioError: if a file cannot be read, or is shorter than its manifest says.
        InputError: if the store may not hold so much.
    """
    missing = list({clip.key: clip for clip in clips if clip.key not in store}.values())
    if not missing:
        return
    dimension = source.frame_dimension if plan.frames else source.dimension
    row_bytes = len(source.layers) * dimension * np.dtype(plan.dtype).itemsize
    needed = sum(sum(plan.row_counts(clip)) for clip in missing) * row_bytes
    store.make_room(needed)
    progress = tqdm(total=len(missing), desc=f"features of {source.name}", unit="clip")
    try:
        with progress:
            group: list[tuple[Clip, np.ndarray]] = []
            for item in _read_all(missing, source):
                group.append(item)
                if len(group) == _CLIPS_AT_ONCE:
                    _encode(store, source, plan, group)
                    progress.update(len(group))
                    group = []
            _encode(store, source, plan, group)
            progress.update(len(group))
    finally:
        store.flush()


def _read_all(clips: Sequence[Clip], source: Source) -> Iterator[tuple[Clip, np.ndarray]]:
    """Clips with their samples, in order, read by threads some clips ahead."""
    workers = available_cpus()
    with ThreadPoolExecutor(workers) as pool:
        waiting: deque[tuple[Clip, Future[np.ndarray]]] = deque()
        try:
            for clip in clips:
                waiting.append((clip, pool.submit(_read, clip, source)))
                if len(waiting) > _READ_AHEAD * workers:
                    done, future = waiting.popleft()
                    yield done, future.result()
            while waiting:
                done, future = waiting.popleft()
                yield done, future.result()
        finally:
            for _, future in waiting:
                future.cancel()


def _read(clip: Clip, source: Source) -> np.ndarray:
    waveform = audio.read(clip.path, clip.start, clip.stop - clip.start)
    seconds = (clip.stop - clip.start) / SAMPLE_RATE
    if len(waveform) < clip.stop - clip.start - 0.1 * SAMPLE_RATE:
        raise AudioError(
            clip.path,
            f"has {len(waveform) / SAMPLE_RATE:.2f} s where the manifest wants {seconds:.2f} s: "
            "make the manifests again",
        )
    if clip.stop - clip.start < source.grid.window:
        raise AudioError(
            clip.path, f"{seconds:.3f} s are less than one frame of the upstream: leave it out"
        )
    return np.pad(waveform, (0, clip.stop - clip.start - len(waveform)))


def _encode(
    store: FeatureStore, source: Source, plan: Plan, group: list[tuple[Clip, np.ndarray]]
) -> None:
    """Features of some clips, windows of equal length together."""
    places: dict[tuple[int, int], list[tuple[int, int]]] = {}
    waveforms: dict[tuple[int, int], list[np.ndarray]] = {}
    results: list[list[np.ndarray]] = []
    for number, (clip, samples) in enumerate(group):
        windows = plan.windows(clip)
        results.append([np.zeros(0)] * len(windows))
        for i, window in enumerate(windows):
            part = _samples(samples, window.start - clip.start, window, source, plan.frames)
            shape = (len(part), frames_of(window))
            places.setdefault(shape, []).append((number, i))
            waveforms.setdefault(shape, []).append(part)
    for shape, parts in waveforms.items():
        size = max(1, int(plan.batch_seconds * SAMPLE_RATE) // shape[0])
        for first in range(0, len(parts), size):
            batch = np.stack(parts[first : first + size])
            features = _features(source, plan, batch, shape[1])
            for (number, i), rows in zip(
                places[shape][first : first + size], features, strict=True
            ):
                results[number][i] = rows
    for (clip, _), rows in zip(group, results, strict=True):
        store.add(clip.key, np.concatenate(rows))


def _samples(
    samples: np.ndarray, start: int, window: Window, source: Source, frames: bool
) -> np.ndarray:
    """A window's samples; for frames, with what the last of them needs beyond its end."""
    beyond = source.grid.window - source.grid.hop if frames else 0
    part = samples[start : start + window.num_samples + max(0, beyond)]
    return np.pad(part, (0, max(0, source.grid.window - len(part))))


def _features(source: Source, plan: Plan, batch: np.ndarray, num_frames: int) -> np.ndarray:
    """`[B, T]` to `[B, rows, layers, D]`."""
    if not plan.frames:
        return source.clip_features(batch)[:, None]
    features = source.frame_features(batch, num_frames)
    largest = np.finfo(np.float16).max
    return np.clip(features, -largest, largest).astype(np.float16)
