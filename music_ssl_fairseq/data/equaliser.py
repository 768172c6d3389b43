"""Filter crops at random, keep the units: timbre that does not depend on one recording's colour.

The encoder has to predict the units of the unfiltered music.
"""

import numpy as np

from music_ssl_fairseq.frames import SAMPLE_RATE

_LOWEST_HZ = 62.5  # octaves from here to half the sampling rate


def equalise(waveform: np.ndarray, decibels: float, rng: np.random.Generator) -> np.ndarray:
    """Multiply a crop's spectrum by a smooth random curve, and keep its power.

    Args:
        waveform: `[T]` float32.
        decibels: largest gain and loss. The curve is drawn per octave, uniform between them, and
            linear in the logarithm of frequency between octaves.

    Returns:
        `[T]` float32.
    """
    octaves = int(np.log2(SAMPLE_RATE / 2 / _LOWEST_HZ)) + 1
    levels = rng.uniform(-decibels, decibels, octaves)
    spectrum = np.fft.rfft(waveform)
    hertz = np.fft.rfftfreq(len(waveform), 1 / SAMPLE_RATE)
    position = np.log2(np.maximum(hertz, _LOWEST_HZ) / _LOWEST_HZ)
    spectrum *= 10 ** (np.interp(position, np.arange(octaves), levels) / 20)
    filtered = np.fft.irfft(spectrum, len(waveform)).astype(np.float32)
    before, after = np.square(waveform).mean(), np.square(filtered).mean()
    return filtered * np.float32(np.sqrt(before / after)) if after > 0 else filtered
