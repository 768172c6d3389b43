"""In-batch mixing."""

import numpy as np
import pytest
import torch

from music_ssl_fairseq.data.augmentation import draw_gain, mix
from music_ssl_fairseq.data.crops import MIXING, generator


def test_adds_the_crop_before_at_the_level_drawn():
    sources = [torch.randn(100), 5 * torch.randn(100), torch.randn(60)]
    mixed = mix(sources, [0.0, 0.25, 0.5])
    assert mixed[0] is sources[0]
    for i, gain in ((1, 0.25), (2, 0.5)):
        size = len(sources[i])
        added = mixed[i] - sources[i]
        other = sources[i - 1]
        ratio = sources[i].square().mean().sqrt() / other.square().mean().sqrt()
        torch.testing.assert_close(added, gain * ratio * other[:size], atol=1e-5, rtol=1e-4)


def test_the_first_takes_the_last_and_a_shorter_one_leaves_the_rest():
    short, long = torch.randn(60), torch.randn(100)
    mixed = mix([long, short], [0.3, 0.0])
    assert torch.equal(mixed[0][60:], long[60:])
    assert not torch.equal(mixed[0][:60], long[:60])


@pytest.mark.parametrize("silent", [0, 1])
def test_silence_is_neither_added_nor_added_to(silent):
    sources = [torch.randn(50), torch.randn(50)]
    sources[silent] = torch.zeros(50)
    for source, mixed in zip(sources, mix(sources, [0.5, 0.5]), strict=True):
        assert torch.equal(source, mixed)


def test_gains_follow_from_seed_epoch_and_index():
    draws = [draw_gain(0.5, generator(1, 2, index, MIXING)) for index in range(400)]
    assert draws == [draw_gain(0.5, generator(1, 2, index, MIXING)) for index in range(400)]
    mixed = np.array([gain for gain in draws if gain])
    assert 160 < len(mixed) < 240
    assert mixed.min() >= 0.1
    assert mixed.max() <= 10 ** (-6 / 20)
