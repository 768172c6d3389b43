"""Decode beats: from the probability of a beat in each frame to the times of the beats.

- `dbn` is the usual dynamic Bayesian network, a hidden Markov model over tempo and position in the
  beat. Its state space is that of Krebs, Böck and Widmer, "An efficient state-space model for joint
  tempo and meter tracking" (ISMIR 2015). Its parameters and results are madmom's: 55 to 215 beats
  per minute, lambda 100, beat states of one sixteenth of a beat, the strongest of their frames.
- `librosa` is the dynamic programming of Ellis in librosa.
- `peaks` takes local maxima.
"""

from collections.abc import Callable
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from music_ssl_fairseq.probing.features.windows import FRAME_RATE

_MIN_BPM, _MAX_BPM = 55.0, 215.0
_TEMPO_LAMBDA = 100.0  # a tempo change by the factor r has probability ~ exp(-lambda |r - 1|)
_BEAT_SHARE = 16  # beat states are 1 / 16 of a beat
_MIN_PROBABILITY = 1e-6  # activations are clipped to [it, 1 - it]
_PEAK_RADIUS_FRAMES = 7


class _Space(NamedTuple):
    """State space: for each tempo, positions 0 to interval - 1, in order."""

    intervals: np.ndarray  # [tempi] frames per beat
    first: np.ndarray  # [tempi] the state at position 0
    last: np.ndarray  # [tempi] the state at the last position
    beat: np.ndarray  # [states] bool, the first sixteenth
    change: np.ndarray  # [tempi before, tempi after] log probability


@lru_cache(maxsize=1)
def _state_space() -> _Space:
    shortest = round(60 * FRAME_RATE / _MAX_BPM)
    longest = round(60 * FRAME_RATE / _MIN_BPM)
    intervals = np.arange(shortest, longest + 1)
    ends = np.cumsum(intervals)
    first = ends - intervals
    position = np.concatenate([np.arange(n) / n for n in intervals])
    ratio = intervals[None, :] / intervals[:, None]
    change = np.exp(-_TEMPO_LAMBDA * np.abs(ratio - 1))
    change[change <= np.finfo(float).eps] = 0
    change /= change.sum(axis=1, keepdims=True)
    with np.errstate(divide="ignore"):
        return _Space(intervals, first, ends - 1, position < 1 / _BEAT_SHARE, np.log(change))


def dbn(activation: np.ndarray) -> np.ndarray:
    """Decode by the most probable path: activations `[frames]` in [0, 1] to seconds `[beats]`."""
    if not len(activation):
        return np.zeros(0)
    space = _state_space()
    activation = np.asarray(activation, np.float64)
    probability = np.clip(activation, _MIN_PROBABILITY, 1 - _MIN_PROBABILITY)
    on_beat = np.log(probability)
    off_beat = np.log((1 - probability) / (_BEAT_SHARE - 1))
    score = np.full(len(space.beat), -np.log(len(space.beat)))
    origin = np.zeros((len(activation), len(space.intervals)), np.int16)
    for frame in range(len(activation)):
        into = score[space.last][:, None] + space.change
        origin[frame] = into.argmax(axis=0)
        score[1:] = score[:-1].copy()
        score[space.first] = into.max(axis=0)
        score += np.where(space.beat, on_beat[frame], off_beat[frame])
    starts = _starts(space, origin, int(score.argmax()))
    return np.array(_strongest(activation, space, starts)) / FRAME_RATE


def _starts(space: _Space, origin: np.ndarray, state: int) -> list[tuple[int, int]]:
    """Trace back the path to `state`: (frame of position 0, tempo) of each beat, in order."""
    tempo = int(np.searchsorted(space.last, state))
    frame = len(origin) - 1 - (state - int(space.first[tempo]))
    starts = [(frame, tempo)]
    while frame > 0:
        tempo = int(origin[frame, tempo])
        frame -= int(space.intervals[tempo])
        starts.append((frame, tempo))
    return starts[::-1]


def _strongest(activation: np.ndarray, space: _Space, starts: list[tuple[int, int]]) -> list[int]:
    beats = []
    for start, tempo in starts:
        stop = start - (-int(space.intervals[tempo]) // _BEAT_SHARE)
        start, stop = max(0, start), min(stop, len(activation))
        if stop > start:
            beats.append(start + int(activation[start:stop].argmax()))
    return beats


def peaks(activation: np.ndarray) -> np.ndarray:
    """Decode by the highest frames within ±0.14 s that reach twice the mean of all frames."""
    if not len(activation):
        return np.zeros(0)
    return np.flatnonzero(are_peaks(np.asarray(activation)[None])[0]) / FRAME_RATE


def are_peaks(activations: np.ndarray) -> np.ndarray:
    """Find the peaks of several activations `[N, frames]`, as `[N, frames]` bool."""
    from scipy.ndimage import maximum_filter1d

    highest = maximum_filter1d(activations, 2 * _PEAK_RADIUS_FRAMES + 1, axis=-1, mode="nearest")
    level = 2 * activations.mean(axis=-1, keepdims=True)
    found = (activations == highest) & (activations >= level)
    # Keep the first of equal neighbours.
    found[:, 1:] &= ~(found[:, :-1] & (activations[:, 1:] == activations[:, :-1]))
    return found


def dynamic_programming(activation: np.ndarray) -> np.ndarray:
    """Decode by librosa's beat tracker, with the activation as onset strength."""
    from music_ssl_fairseq.runtime.imports import import_librosa

    if not np.any(activation):
        return np.zeros(0)
    envelope = np.asarray(activation, np.float32)
    _, beats = import_librosa().beat.beat_track(
        onset_envelope=envelope, sr=FRAME_RATE, hop_length=1, units="frames", trim=False
    )
    return np.asarray(beats) / FRAME_RATE


DECODERS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "dbn": dbn,
    "librosa": dynamic_programming,
    "peaks": peaks,
}
"""Name -> function from activation `[frames]` in [0, 1] to seconds `[beats]`."""
