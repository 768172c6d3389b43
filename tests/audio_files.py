"""Small audio files for tests: real ones, of notes and a little noise, made on the spot."""

import os
from pathlib import Path

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


def write_tone(
    path: str | os.PathLike,
    seconds: float,
    sample_rate: int = 16_000,
    channels: int = 1,
    seed: int = 0,
) -> Path:
    """Write `tone(...)` as the format that the suffix names: wav, flac, ogg, opus or mp3."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    format_, subtype = {
        ".wav": ("WAV", "PCM_16"),
        ".flac": ("FLAC", "PCM_16"),
        ".ogg": ("OGG", "VORBIS"),
        ".opus": ("OGG", "OPUS"),
        ".mp3": ("MP3", "MPEG_LAYER_III"),
    }[path.suffix]
    waveform = tone(seconds, sample_rate, channels, seed)
    with soundfile.SoundFile(
        os.fsencode(path), "w", sample_rate, channels, subtype, format=format_
    ) as file:
        # In pieces: some versions of libvorbis overflow their stack on one long write.
        for block in np.array_split(waveform, max(1, len(waveform) // 16_000)):
            file.write(block)
    return path
