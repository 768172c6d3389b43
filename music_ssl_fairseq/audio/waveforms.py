"""Judge and normalise waveforms, `[T]` float32."""

import numpy as np

from music_ssl_fairseq.errors import AudioError

SILENCE = 1e-4
"""A waveform that stays within this much of one value is silent: -80 dB of full scale."""

MAX_SAMPLE = 1e10
"""Beyond 32-bit integers stored as floats; the square still fits float32."""


def refuse_bad_samples(name: str, waveform: np.ndarray) -> None:
    """Refuse NaN, infinite and absurdly large samples: one of them spoils a whole update."""
    if not len(waveform):
        return
    # max and min are NaN if any sample is.
    peak = max(waveform.max(), -waveform.min())
    if not np.isfinite(peak):
        raise AudioError(name, "holds NaN or infinite samples")
    if peak > MAX_SAMPLE:
        raise AudioError(name, f"holds samples as large as {peak:.3g}, where audio is within 1")


def is_silent(waveform: np.ndarray) -> bool:
    """Tell whether `[T]` is constant up to dither."""
    return not len(waveform) or float(waveform.max() - waveform.min()) <= 2 * SILENCE


def normalise(waveform: np.ndarray) -> np.ndarray:
    """Scale to zero mean and unit variance over the whole crop, as fairseq's `normalize: true`.

    Equals `torch.nn.functional.layer_norm(waveform, waveform.shape)`: biased variance and an
    epsilon of 1e-5, so that silence stays silent.
    """
    centred = waveform - waveform.mean(dtype=np.float64).astype(np.float32)
    variance = np.square(centred).mean(dtype=np.float64)
    return centred * np.float32(1.0 / np.sqrt(variance + 1e-5))
