"""Compute the features that a cache lacks: files are read ahead, windows encoded in batches."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np
from tqdm import tqdm

from music_ssl_fairseq import audio
from music_ssl_fairseq.errors import AudioError
from music_ssl_fairseq.frames import LENGTH_TOLERANCE, SAMPLE_RATE, FrameGrid, samples_in
from music_ssl_fairseq.jobs.read_ahead import ReadAhead
from music_ssl_fairseq.probing.features.cache import Clip, FeatureCache
from music_ssl_fairseq.probing.features.source import FeatureSource
from music_ssl_fairseq.probing.features.windows import (
    MIN_WINDOW_SAMPLES,
    ClipWindow,
    cut_windows,
    frames_of,
)
from music_ssl_fairseq.runtime.machine import available_cpus

_CLIPS_AHEAD = 8  # per thread
_CLIPS_PER_GROUP = 64  # whose windows share batches


@dataclass(frozen=True)
class WindowPlan:
    """The cut of clips into windows, and of windows into vectors."""

    seconds: float  # length of a window; 0 for the whole clip
    per_frame: bool  # one vector per frame (50 per second) instead of one per window
    batch_seconds: float = 40.0  # audio per batch of the encoder

    def windows(self, clip: Clip) -> list[ClipWindow]:
        """Cut a clip into windows."""
        size = samples_in(self.seconds)
        least = MIN_WINDOW_SAMPLES if self.per_frame else -(-size // 2)
        return cut_windows(clip.start, clip.stop, size, least)

    def vector_counts(self, clip: Clip) -> list[int]:
        """Count the vectors of each window of a clip."""
        return [frames_of(window) if self.per_frame else 1 for window in self.windows(clip)]


def feature_identity(source: FeatureSource, plan: WindowPlan) -> dict[str, object]:
    """Identify features by all that decides them, for `FeatureCache`."""
    return {
        "fingerprint": source.fingerprint,
        "precision": source.precision,
        "window_seconds": plan.seconds,
        "kind": "frames" if plan.per_frame else "windows",
        "layers": len(source.layer_names),
    }


def fill(
    cache: FeatureCache, source: FeatureSource, plan: WindowPlan, clips: Sequence[Clip]
) -> None:
    """Compute the features of all clips that the cache does not have.

    An interrupted call leaves in the cache what it has computed.

    Raises:
        AudioError: if a file cannot be read, or is shorter than its manifest says.
        InputError: if the cache may not hold as much.
    """
    missing = list({clip.key: clip for clip in clips if clip.key not in cache}.values())
    if not missing:
        return
    dimension = source.frame_dimension if plan.per_frame else source.dimension
    vectors = sum(sum(plan.vector_counts(clip)) for clip in missing)
    cache.make_room(vectors * len(source.layer_names) * dimension * (2 if plan.per_frame else 4))
    workers = available_cpus()

    def read(clip: Clip) -> tuple[Clip, np.ndarray]:
        return clip, read_part(source.grid, clip, clip.start, clip.stop)

    reader = ReadAhead(read, missing, workers, _CLIPS_AHEAD * workers)
    progress = tqdm(total=len(missing), desc=f"features of {source.name}", unit=" clips")
    try:
        with progress, reader:
            clips_read = iter(reader)
            while group := list(islice(clips_read, _CLIPS_PER_GROUP)):
                _encode(cache, source, plan, group)
                progress.update(len(group))
    finally:
        cache.flush()


def read_part(grid: FrameGrid, clip: Clip, start: int, stop: int) -> np.ndarray:
    """Read the samples `[start, stop)` of a clip's file.

    Raises AudioError if it cannot be read, ends over 0.1 s earlier, or the clip is too short.
    """
    waveform = audio.read(clip.path, start, stop - start)
    if len(waveform) < stop - start - samples_in(LENGTH_TOLERANCE):
        raise AudioError(
            clip.path,
            f"has {len(waveform) / SAMPLE_RATE:.2f} s where the manifest wants "
            f"{(stop - start) / SAMPLE_RATE:.2f} s: make the manifests again",
        )
    if clip.stop - clip.start < grid.window:
        raise AudioError(
            clip.path,
            f"{(clip.stop - clip.start) / SAMPLE_RATE:.3f} s are less than one frame of the "
            "upstream: leave it out",
        )
    return _padded(waveform, stop - start)


def _encode(
    cache: FeatureCache,
    source: FeatureSource,
    plan: WindowPlan,
    group: list[tuple[Clip, np.ndarray]],
) -> None:
    """Encode some clips, windows of equal length together."""
    by_shape: dict[tuple[int, int], list[tuple[int, int, np.ndarray]]] = {}
    results: list[list[np.ndarray]] = []
    for number, (clip, samples) in enumerate(group):
        windows = plan.windows(clip)
        results.append([np.zeros(0)] * len(windows))
        for i, window in enumerate(windows):
            part = samples_of(
                samples, window.start - clip.start, window, source.grid, plan.per_frame
            )
            by_shape.setdefault((len(part), frames_of(window)), []).append((number, i, part))
    for (length, num_frames), parts in by_shape.items():
        size = max(1, int(plan.batch_seconds * SAMPLE_RATE) // length)
        for first in range(0, len(parts), size):
            chosen = parts[first : first + size]
            batch = np.stack([part for *_, part in chosen])
            features = (
                source.frame_features(batch, num_frames)
                if plan.per_frame
                else source.clip_features(batch)[:, None]
            )
            for (number, i, _), vectors in zip(chosen, features, strict=True):
                results[number][i] = vectors
    for (clip, _), vectors in zip(group, results, strict=True):
        cache.add(clip.key, vectors[0] if len(vectors) == 1 else np.concatenate(vectors))


def samples_of(
    samples: np.ndarray, start: int, window: ClipWindow, grid: FrameGrid, per_frame: bool
) -> np.ndarray:
    """Cut out a window; for frames, with the samples beyond its end that the last one covers."""
    return _padded(samples[start : start + length_of(window, grid, per_frame)], grid.window)


def _padded(samples: np.ndarray, length: int) -> np.ndarray:
    """Return at least `length` samples; most need no padding, and are not copied."""
    missing = length - len(samples)
    return np.pad(samples, (0, missing)) if missing > 0 else samples


def length_of(window: ClipWindow, grid: FrameGrid, per_frame: bool) -> int:
    """Return the samples that a window needs, which may be more than its clip has."""
    return window.num_samples + (max(0, grid.window - grid.hop) if per_frame else 0)
