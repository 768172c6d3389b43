"""Random filters on crops."""

import numpy as np
import torch

from music_ssl_fairseq.data.augmentation import draw_levels, equalise
from music_ssl_fairseq.data.crops import EQUALISER, generator


def test_curves_pass_through_the_levels_of_each_crop_and_power_is_kept():
    noise = torch.randn(2, 80000, generator=torch.Generator().manual_seed(0))
    levels = torch.stack([draw_levels(9.0, generator(1, 2, i, EQUALISER)) for i in (3, 4)])
    assert 3 < levels.max() - levels.min() <= 18
    assert not torch.equal(levels[0], levels[1])
    filtered = equalise(noise, levels)
    torch.testing.assert_close(filtered.square().mean(1), noise.square().mean(1))
    hertz = np.fft.rfftfreq(80000, 1 / 16000)
    ratio = torch.fft.rfft(filtered).abs() / torch.fft.rfft(noise).abs()
    octaves = 62.5 * 2.0 ** np.arange(8)
    for decibels, wanted in zip(20 * torch.log10(ratio[:, 1:-1]), levels, strict=True):
        expected = np.interp(np.log2(hertz[1:-1]), np.log2(octaves), wanted)
        difference = decibels.numpy() - expected  # one number, which keeps the power
        np.testing.assert_allclose(difference, difference.mean(), atol=0.01)


def test_filters_follow_from_seed_epoch_and_index():
    first = draw_levels(6.0, generator(1, 2, 3, EQUALISER))
    assert torch.equal(first, draw_levels(6.0, generator(1, 2, 3, EQUALISER)))
    assert not torch.equal(first, draw_levels(6.0, generator(1, 3, 3, EQUALISER)))


def test_silence_and_padding_stay_silent():
    source, padding = torch.ones(2, 500), torch.zeros(2, 500, dtype=torch.bool)
    source[0], padding[1, 300:] = 0, True
    filtered = equalise(source.masked_fill(padding, 0), torch.full((2, 8), 3.0), padding)
    assert not filtered[0].any()
    assert filtered[1, :300].any()
    assert not filtered[1, 300:].any()
