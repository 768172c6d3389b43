"""The fast path's pieces equal the plain operations they replace."""

import pytest
import torch
from torch.nn import functional as F

from music_ssl_fairseq.modules.block_conv import block_conv
from music_ssl_fairseq.modules.conv_extractor import conv_channels_last
from music_ssl_fairseq.modules.fast import ShapeGate
from tests import tiny


@pytest.mark.parametrize("frames", [1, 15, 16, 49])
@pytest.mark.parametrize("kernel", [3, 19, 128])
def test_block_conv_is_a_grouped_convolution(frames, kernel):
    x = torch.randn(2, frames, 24, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(24, 6, kernel, dtype=torch.float64, requires_grad=True)
    bias = torch.randn(24, dtype=torch.float64)
    ours = block_conv(x, weight, bias, 4)
    plain = F.conv1d(x.transpose(1, 2), weight, bias, padding=kernel // 2, groups=4)
    plain = plain[..., :frames].transpose(1, 2)
    torch.testing.assert_close(ours, plain)
    grad = torch.randn_like(ours)
    for a, b in zip(
        torch.autograd.grad(ours, (x, weight), grad),
        torch.autograd.grad(plain, (x, weight), grad),
        strict=True,
    ):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize(("kernel", "stride"), [(10, 5), (3, 2), (2, 2), (5, 2), (2, 3), (8, 8)])
@pytest.mark.parametrize("channels", [1, 6])
@pytest.mark.parametrize("length", [30, 31, 33])
def test_conv_channels_last_is_a_convolution(kernel, stride, channels, length):
    x = torch.randn(2, length, channels, dtype=torch.float64)
    weight = torch.randn(5, channels, kernel, dtype=torch.float64)
    bias = torch.randn(5, dtype=torch.float64)
    plain = F.conv1d(x.transpose(1, 2), weight, bias, stride).transpose(1, 2)
    torch.testing.assert_close(conv_channels_last(x, weight, bias, stride), plain)


def test_shape_gate_chooses_the_shape_that_keeps_coming():
    gate = ShapeGate()
    assert not gate("train", (3, 100))  # the rest of an epoch, first by chance
    assert not gate("train", (8, 100))
    assert gate("train", (8, 100))
    assert not gate("train", (3, 100))
    assert gate("train", (8, 100))
    assert not gate("valid", (8, 100))


def test_state_dicts_do_not_depend_on_the_path():
    assert set(tiny.music_hubert(fast="on").state_dict()) == set(
        tiny.music_hubert(fast="off").state_dict()
    )
