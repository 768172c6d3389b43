"""From how much each frame is a beat to the times of the beats.

`dbn` is the usual dynamic Bayesian network: a hidden Markov model over tempo and position in the
beat, in the state space of Krebs, Böck and Widmer, "An efficient state-space model for joint tempo
and meter tracking" (ISMIR 2015), with madmom's parameters: 55 to 215 beats a minute, lambda 100,
beat states of one sixteenth of a beat, and the strongest frame of those as the beat. Its results
are madmom's. `librosa` is the dynamic programming of Ellis in librosa. `peaks` takes what stands
out.
"""

from collections.abc import Callable
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from music_ssl_fairseq.probing.features.windows import FRAME_RATE

_SLOWEST, _FASTEST = 55.0, 215.0  # beats a minute
_TEMPO_LAMBDA = 100.0  # how steep: a tempo change by the factor r has exp(-lambda |r - 1|)
_BEAT_SHARE = 16  # beat states are 1 / 16 of a beat
_SMALLEST = 1e-6  # probabilities stay off 0 and 1 by this
_NEAREST = 7  # frames that peaks keep from each other


class _Space(NamedTuple):
    """States: for each tempo, positions 0 to interval - 1, one after the other."""

    intervals: np.ndarray  # [tempi] frames a beat
    first: np.ndarray  # [tempi] the state at position 0
    last: np.ndarray  # [tempi] the state at the last position
    beat: np.ndarray  # [states] bool, the first sixteenth
    change: np.ndarray  # [tempi before, tempi after] log probability


@lru_cache(maxsize=1)
def _space() -> _Space:
    shortest = round(60 * FRAME_RATE / _FASTEST)
    longest = round(60 * FRAME_RATE / _SLOWEST)
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
    """The beats of the most probable path through the network.

    Args:
        activation: `[frames]` in [0, 1], 50 a second.

    Returns:
        `[beats]` seconds.
    """
    if not len(activation):
        return np.zeros(0)
    space = _space()
    activation = np.asarray(activation, np.float64)
    probability = np.clip(activation, _SMALLEST, 1 - _SMALLEST)
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
    """The path that ends in `state`, as (frame of position 0, tempo) of each beat, in order."""
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
    """Frames that are the highest within 0.14 s either way, and twice the mean of all."""
    if not len(activation):
        return np.zeros(0)
    return np.flatnonzero(are_peaks(np.asarray(activation)[None])[0]) / FRAME_RATE


def are_peaks(activations: np.ndarray) -> np.ndarray:
    """The same for `[rows, frames]` at once, as `[rows, frames]` bool."""
    from scipy.ndimage import maximum_filter1d

    highest = maximum_filter1d(activations, 2 * _NEAREST + 1, axis=-1, mode="nearest")
    level = 2 * activations.mean(axis=-1, keepdims=True)
    found = (activations == highest) & (activations >= level)
    # Of equal neighbours the first.
    found[:, 1:] &= ~(found[:, :-1] & (activations[:, 1:] == activations[:, :-1]))
    return found


def dynamic_programming(activation: np.ndarray) -> np.ndarray:
    """librosa's beat tracker, with the activation as the strength of onsets."""
    from music_ssl_fairseq.runtime.librosa_import import import_librosa

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
"""`[frames]` in [0, 1] to seconds, by name."""
