"""Open audio of any format: seek, mix to mono, resample, normalise. No other code opens audio.

`mp3` encodes it for pages.

A `waveform` is `[T]` float32, mono, nominally in [-1, 1]. Positions and lengths are counted in
samples *at the rate asked for*, whatever the file's own rate: a crop of a 44.1 kHz file is, to
rounding, the same samples as that part of the whole file resampled.
"""

from music_ssl_fairseq.audio.libsndfile import mp3
from music_ssl_fairseq.audio.reading import MAX_RATE, MIN_RATE, AudioInfo, probe, read
from music_ssl_fairseq.audio.tar_members import parse_member
from music_ssl_fairseq.audio.waveforms import SILENCE, is_silent, normalise, resample

__all__ = [
    "EXTENSIONS", "MAX_RATE", "MIN_RATE", "SILENCE", "AudioInfo", "is_silent", "mp3", "normalise",
    "parse_member", "probe", "read", "resample",
]  # fmt: skip

EXTENSIONS = (
    ".wav", ".flac", ".ogg", ".opus", ".mp3", ".m4a", ".aac", ".aif", ".aiff", ".wma", ".ape",
    ".wv", ".caf", ".mka", ".webm", ".aifc", ".au", ".m4b", ".mp2", ".oga", ".w64", ".wave",
    ".weba", ".tta", ".mpc", ".ac3", ".dsf", ".snd", ".rf64",
)  # fmt: skip
"""Suffixes of audio files: all code that finds, lists or counts audio uses these."""
