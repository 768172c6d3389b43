"""Diagnostics of music2vec: what the targets encode, and what the predictions depend on."""

import pytest
import torch

from music_ssl_fairseq.criterions.music2vec import music_gain, position_share


def test_position_share():
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(8, 50, 4, generator=generator)
    clock = torch.randn(1, 50, 4, generator=generator).expand(8, -1, -1)
    assert abs(position_share(noise)) < 0.05
    assert position_share(clock) == pytest.approx(1.0)
    assert position_share(clock + noise) == pytest.approx(0.5, abs=0.1)
    assert position_share(noise[:1]) == 0


def test_music_gain():
    generator = torch.Generator().manual_seed(0)
    target = torch.randn(8, 50, 4, generator=generator)
    masked = torch.arange(0, 400, 3)
    own = target.flatten(0, 1)[masked]
    clock = target.mean(0, keepdim=True).expand(8, -1, -1).flatten(0, 1)[masked]
    assert music_gain(own, own, target, masked) == 1
    assert abs(music_gain(clock, own, target, masked)) < 0.1
    # Half of the target: own error 1/4 of the variance, the other's 1 + 1/4.
    assert music_gain(own / 2, own, target, masked) == pytest.approx(0.8, abs=0.05)
    first = masked[masked < 50]  # a single crop has no other
    assert music_gain(0.5 * own[: len(first)], own[: len(first)], target[:1], first) == 0
