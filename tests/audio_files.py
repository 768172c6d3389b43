"""Small audio files for tests: real ones, of notes and a little noise, made on the spot."""

import functools
import os
import tempfile
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import soundfile


def tone(seconds: float, sample_rate: int = 16_000, channels: int = 1, seed: int = 0) -> np.ndarray:
    """Decaying notes of six harmonics, two a second, over faint noise.

    Returns:
        `[T, channels]` float32 within [-1, 1]; the channels are different.
    """
    rng = np.random.default_rng(seed)
    num_samples = round(seconds * sample_rate)
    waveform = 0.002 * rng.standard_normal((num_samples, channels))
    for start in np.arange(0, seconds, 0.5):
        first = round(start * sample_rate)
        time = np.arange(min(sample_rate, num_samples - first)) / sample_rate
        frequency = 110 * 2 ** (rng.integers(0, 36) / 12)
        harmonics = np.arange(1, 7)
        harmonics = harmonics[harmonics * frequency < 0.4 * sample_rate]
        phases = 2 * np.pi * frequency * harmonics[:, None] * time
        note = (np.sin(phases) / harmonics[:, None]).sum(0) * np.exp(-3 * time)
        waveform[first : first + len(time)] += 0.12 * note[:, None] * rng.uniform(0.2, 1, channels)
    return np.clip(waveform, -1, 1).astype(np.float32)


SOUNDFILE = {
    ".wav": ("WAV", "PCM_16"),
    ".flac": ("FLAC", "PCM_16"),
    ".ogg": ("OGG", "VORBIS"),
    ".opus": ("OGG", "OPUS"),
    ".mp3": ("MP3", "MPEG_LAYER_III"),
    ".aiff": ("AIFF", "PCM_16"),
    ".caf": ("CAF", "PCM_16"),
    ".au": ("AU", "PCM_16"),
    ".w64": ("W64", "PCM_16"),
}
"""Suffix -> format and subtype of what libsndfile writes."""

PYAV = {
    ".m4a": ("ipod", "aac"),
    ".aac": ("adts", "aac"),
    ".wma": ("asf", "wmav2"),
    ".wv": ("wv", "wavpack"),
    ".mka": ("matroska", "flac"),
    ".webm": ("webm", "libopus"),
    ".tta": ("tta", "tta"),
    ".mp2": ("mp2", "mp2"),
    ".ac3": ("ac3", "ac3"),
}
"""Suffix -> format and codec of what FFmpeg writes."""


def write_tone(
    path: str | os.PathLike,
    seconds: float,
    sample_rate: int = 16_000,
    channels: int = 1,
    seed: int = 0,
) -> Path:
    """Write `tone(...)` as the format that the suffix names, one of `SOUNDFILE` and `PYAV`."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(_encoded_tone(path.suffix, seconds, sample_rate, channels, seed))
    return path


@functools.lru_cache(maxsize=500)
def _encoded_tone(suffix: str, seconds: float, sample_rate: int, channels: int, seed: int) -> bytes:
    """Return the file's bytes, of which most tests ask for the same few."""
    waveform = tone(seconds, sample_rate, channels, seed)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, f"tone{suffix}")
        if suffix in PYAV:
            return encode(path, waveform, sample_rate, *PYAV[suffix]).read_bytes()
        format_, subtype = SOUNDFILE[suffix]
        with soundfile.SoundFile(path, "w", sample_rate, channels, subtype, format=format_) as file:
            # In pieces: some versions of libvorbis overflow their stack on one long write.
            for block in np.array_split(waveform, max(1, len(waveform) // 16_000)):
                file.write(block)
        return path.read_bytes()


def encode(
    path: Path,
    waveform: np.ndarray,
    sample_rate: int,
    container: str,
    codec: str,
    bit_rate: int = 128_000,
    options: dict[str, str] | None = None,
) -> Path:
    """Write `[T, channels]` with an encoder of FFmpeg (PyAV).

    Args:
        options: of the container.
    """
    layout = {1: "mono", 2: "stereo"}[waveform.shape[1]]
    with av.open(str(path), "w", format=container, options=options or {}) as out:
        stream = out.add_stream(codec, rate=sample_rate, layout=layout)
        stream.bit_rate = bit_rate
        kinds = [kind.name for kind in av.Codec(codec, "w").audio_formats]
        # Of lossless codecs 16 bits, as of the other files here.
        kind = next(k for k in ("s16", "s16p", *kinds) if k in kinds)
        stream.format = kind
        whole = av.AudioFrame.from_ndarray(
            np.ascontiguousarray(waveform.T), format="fltp", layout=layout
        )
        whole.sample_rate = sample_rate
        whole.time_base = Fraction(1, sample_rate)
        whole.pts = 0
        resampler = av.AudioResampler(format=kind, layout=layout, rate=sample_rate)
        for frame in [*resampler.resample(whole), *resampler.resample(None)]:
            out.mux(stream.encode(frame))
        out.mux(stream.encode(None))
    return path
