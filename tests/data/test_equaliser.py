"""Random filters on crops."""

import numpy as np

from music_ssl_fairseq.data.crops import EQUALISER, generator
from music_ssl_fairseq.data.equaliser import equalise


def test_gains_are_smooth_and_within_the_limit_and_power_is_kept():
    noise = np.random.default_rng(0).standard_normal(80000).astype(np.float32)
    filtered = equalise(noise, 9.0, generator(1, 2, 3, EQUALISER))
    assert filtered.dtype == np.float32
    np.testing.assert_allclose(np.square(filtered).mean(), np.square(noise).mean(), rtol=1e-4)
    ratio = np.abs(np.fft.rfft(filtered)) / np.abs(np.fft.rfft(noise))
    decibels = 20 * np.log10(ratio[400:])  # from 80 Hz
    assert 3 < np.ptp(decibels) <= 18.01
    assert np.abs(np.diff(decibels)).max() < 0.2


def test_filters_follow_from_seed_epoch_and_index():
    noise = np.random.default_rng(0).standard_normal(1000).astype(np.float32)
    first = equalise(noise, 6.0, generator(1, 2, 3, EQUALISER))
    np.testing.assert_array_equal(first, equalise(noise, 6.0, generator(1, 2, 3, EQUALISER)))
    assert not np.allclose(first, equalise(noise, 6.0, generator(1, 2, 4, EQUALISER)))


def test_silence_stays_silent():
    assert not equalise(np.zeros(500, np.float32), 9.0, generator(1, 2, 3, EQUALISER)).any()
