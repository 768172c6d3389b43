"""Take audio in the forms in which users have it: files, arrays, several of them."""

import os
from collections.abc import Iterable, Sequence
from numbers import Real
from typing import Any, TypeGuard

import numpy as np
from torch import Tensor

from music_ssl_fairseq import audio
from music_ssl_fairseq.audio.waveforms import refuse_bad_samples
from music_ssl_fairseq.errors import AudioError, InputError

Clip = str | os.PathLike | Tensor | np.ndarray | Sequence[float]
"""One piece of audio: a file, or a waveform of one or more channels."""

_MAX_CHANNELS = 64  # more are samples
_MAX_PEAK = 100  # of floats; a larger one is that of integers which were converted, not scaled


def clips_of(given: Any) -> tuple[list[tuple[Clip, str]], bool]:
    """Return the clips that were given, each with its name for messages, and whether it is a list.

    Several clips are a list, tuple or iterator of anything but numbers alone, or an array or Series
    of names or clips. A nested list is a list of clips; another array never is.

    Raises InputError if one is a number, as in `(waveform, sample_rate)`, an open file or None.
    """
    one = isinstance(given, (str, bytes, os.PathLike, Tensor)) or hasattr(given, "read")
    numbers = getattr(getattr(given, "dtype", None), "kind", "O") not in "OUST"
    several = isinstance(given, Iterable) and not one and not numbers
    if several:
        given = list(given)
        several = not given or not all(isinstance(item, Real) for item in given)
    clips = given if several else [given]
    names = [f"clip {i}" if several else "waveform" for i in range(len(clips))]
    for clip, name in zip(clips, names, strict=True):
        if isinstance(clip, Real):
            raise InputError(f"{name} is {clip}, no audio: a rate goes into sample_rate=")
        if (
            not isinstance(clip, (list, tuple))
            and not is_file(clip)
            and not getattr(clip, "ndim", 0)
        ):
            raise InputError(
                f"{name} is {type(clip).__name__}; expected the name of a file or floats in [-1, 1]"
            )
    pairs = zip(clips, names, strict=True)
    return [(clip, os.fspath(clip) if is_file(clip) else name) for clip, name in pairs], several


def mono(clip: Clip, name: str, sample_rate: int | None, channels: str | None) -> np.ndarray:
    """Read, mix and resample one clip.

    Raises InputError if it is something else, or holds NaN or infinite samples.

    Args:
        clip: a file, `[T]`, or two axes that `channels` explains; nominally in [-1, 1].
        name: of the clip, for messages.
        sample_rate: of a waveform, in Hz; a file has its own.
        channels: "first" for `[C, T]`, "last" for `[T, C]`; needed if there are several.

    Returns:
        `[T]` float32 at `SAMPLE_RATE`.
    """
    if channels not in (None, "first", "last"):
        raise InputError(f"channels={channels!r}: expected 'first' for [C, T], 'last' for [T, C]")
    if is_file(clip):
        return audio.read(clip)
    array = _floats(clip, name)
    try:
        waveform, rate = _mixed(array, channels, name), _checked_rate(sample_rate, name)
    except InputError as error:
        error.add_note(_right_call(array.shape, name, sample_rate))
        raise
    refuse_bad_samples(name, waveform)
    if (peak := np.abs(waveform).max(initial=0)) > _MAX_PEAK:
        raise InputError(
            f"{name} holds samples up to {peak:.0f}; expected floats in [-1, 1]: divide integers "
            "by full scale, such as 32768"
        )
    return audio.resample(waveform, rate)


def _right_call(shape: tuple[int, ...], name: str, rate: Any) -> str:
    """Return the call that takes an array of this shape: the last line of a traceback."""
    variable = "waveform" if name == "waveform" else "clips"
    if len(shape) > 2:
        variable, shape = f"list({variable})", shape[-2:]
    known = isinstance(rate, Real) and audio.MIN_RATE <= float(rate) <= audio.MAX_RATE
    options = f"sample_rate={round(float(rate)) if known else 44_100}"
    if len(shape) == 2 and 1 not in shape:
        options += f', channels="{"first" if shape[0] < shape[1] else "last"}"'
    return f"model.features({variable}, {options})" + ("" if known else "  # or its own rate")


def _floats(clip: Any, name: str) -> np.ndarray:
    """Return an array of float32."""
    if isinstance(clip, Tensor):
        if clip.is_meta:
            raise InputError(f"{name}: on the meta device, which holds no samples")
        clip = clip.detach().cpu()
        clip = clip.float() if clip.is_floating_point() else clip
    try:
        array = np.asarray(clip)
    except ValueError:  # lists of different lengths
        raise InputError(f"{name}: not an array: its rows have different lengths") from None
    if array.dtype.kind in "iu" and array.size:
        raise InputError(
            f"{name} holds integers ({array.dtype}); expected floats in [-1, 1]: divide them by "
            "full scale, such as 32768"
        )
    if array.dtype.kind not in "fiu":
        raise InputError(f"{name} holds {array.dtype}; expected a file or floats in [-1, 1]")
    return array.astype(np.float32)


def _mixed(array: np.ndarray, channels: str | None, name: str) -> np.ndarray:
    """Return the mean of the channels, `[T]`."""
    if array.ndim == 1:
        return array
    if array.ndim != 2:
        raise InputError(
            f"{name} has shape {array.shape}; expected [T], or [C, T] or [T, C] with channels="
        )
    if channels is None:
        if 1 in array.shape:  # one channel, either way
            return array.reshape(-1)
        raise InputError(
            f"{name} has shape {array.shape}: say which axis is which, channels='first' for "
            "[C, T] or channels='last' for [T, C]. Several clips are a list"
        )
    axis, other = (0, "last") if channels == "first" else (1, "first")
    if array.shape[axis] > max(_MAX_CHANNELS, array.shape[1 - axis]):
        raise InputError(
            f"{name} has shape {array.shape}, with channels={channels!r} that is "
            f"{array.shape[axis]} channels: did you mean channels={other!r}?"
        )
    return array.mean(axis, dtype=np.float64).astype(np.float32)


def _checked_rate(rate: Any, name: str) -> int:
    if rate is None:
        raise InputError(f"sample_rate is missing: give the rate of {name} in Hz")
    low, high = audio.MIN_RATE, audio.MAX_RATE
    if not isinstance(rate, Real) or not low <= float(rate) <= high or float(rate) % 1:
        raise InputError(
            f"sample_rate {rate!r}: expected a whole number of Hz from {low} to {high}"
        )
    return int(float(rate))


def is_file(clip: Any) -> TypeGuard[str | os.PathLike]:
    """Tell whether a clip is the name of a file."""
    return isinstance(clip, (str, os.PathLike))


def refuse_unreadable(clips: Iterable[Clip]) -> None:
    """Refuse files that are missing or no audio, before work that would be lost.

    Raises AudioError about the first of them, with the names of the others.
    """
    bad = []
    for clip in clips:
        if is_file(clip):
            try:
                audio.probe(clip)
            except AudioError as error:
                bad.append(error)
    if bad:
        others = ", ".join(error.path for error in bad[1:])
        more = f"; {len(bad) - 1} more cannot be read: {others}" if others else ""
        raise AudioError(bad[0].path, bad[0].reason + more)
