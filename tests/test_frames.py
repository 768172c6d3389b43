"""Frame arithmetic against what counts: convolutions, and Kaldi's MFCC."""

import numpy as np
import pytest
import torch
import torchaudio

from music_ssl_fairseq.errors import InputError
from music_ssl_fairseq.frames import (
    FrameGrid,
    amount,
    conv_grid,
    first_from,
    frame_labels,
    label_hop,
    labels_fit,
    parse_conv_layers,
    resampled_length,
    samples_in,
)

BASE = [(512, 10, 5)] + [(512, 3, 2)] * 4 + [(512, 2, 2)] * 2
OTHER = [(8, 7, 4), (8, 4, 3), (8, 5, 1)]
LENGTHS = [0, 1, 399, 400, 401, 719, 720, 1_039, 1_040, 16_000, 79_999, 80_000, 80_001]


def convolved_frames(layers, num_samples):
    """Frames by running the convolutions (one channel wide)."""
    signal = torch.zeros(1, 1, num_samples)
    for _, kernel, stride in layers:
        if signal.shape[-1] < kernel:
            return 0
        signal = torch.nn.functional.conv1d(signal, torch.ones(1, 1, kernel), stride=stride)
    return signal.shape[-1]


def test_the_default_extractor():
    assert conv_grid(BASE) == FrameGrid(window=400, hop=320)


@pytest.mark.parametrize("layers", [BASE, OTHER])
@pytest.mark.parametrize("num_samples", LENGTHS)
def test_frames_are_those_of_the_convolutions(layers, num_samples):
    assert conv_grid(layers).num_frames(num_samples) == convolved_frames(layers, num_samples)


@pytest.mark.parametrize("layers", [BASE, OTHER])
def test_a_frame_hears_its_window(layers):
    """The samples that change frame t are [t * hop, t * hop + window)."""
    grid = conv_grid(layers)
    signal = torch.zeros(1, 1, grid.num_samples(6), requires_grad=True)
    frames = signal
    for _, kernel, stride in layers:
        frames = torch.nn.functional.conv1d(frames, torch.ones(1, 1, kernel), stride=stride)
    (gradient,) = torch.autograd.grad(frames[0, 0, 3], signal)
    heard = gradient[0, 0].nonzero()[:, 0]
    assert int(heard[0]) == 3 * grid.hop
    assert int(heard[-1]) == 3 * grid.hop + grid.window - 1


def test_num_samples_is_the_least():
    grid = conv_grid(BASE)
    assert grid.num_samples(0) == 0
    for frames in (1, 2, 249):
        assert grid.num_frames(grid.num_samples(frames)) == frames
        assert grid.num_frames(grid.num_samples(frames) - 1) == frames - 1


@pytest.mark.parametrize("num_samples", LENGTHS[3:])
def test_mfcc_frames_are_kaldis(num_samples):
    mfcc = torchaudio.compliance.kaldi.mfcc(torch.zeros(1, num_samples), use_energy=False)
    assert FrameGrid(window=400, hop=160).num_frames(num_samples) == len(mfcc)


@pytest.mark.parametrize("num_samples", [400, 719, 720, 80_000, 80_159, 80_240])
def test_every_frame_has_its_mfcc_label(num_samples):
    """Model frame t begins with MFCC frame 2 t, and that one always exists."""
    frames = conv_grid(BASE).num_frames(num_samples)
    chosen = frame_labels(frames, frame_hop=320, hop=label_hop(100))
    assert chosen.tolist() == list(range(0, 2 * frames, 2))
    assert chosen[-1] < FrameGrid(window=400, hop=160).num_frames(num_samples)


def test_labels_of_other_rates():
    assert frame_labels(5, 320, label_hop(50)).tolist() == [0, 1, 2, 3, 4]
    assert frame_labels(5, 320, label_hop(25)).tolist() == [0, 0, 1, 1, 2]
    assert label_hop(62.5) == 256


@pytest.mark.parametrize("rate", [0, -100, 75, 32_000])
def test_impossible_label_rates(rate):
    with pytest.raises(InputError, match="label_rate"):
        label_hop(rate)


def test_labels_fit_within_a_tenth_of_a_second():
    assert labels_fit(500, 80_000, 160)
    assert labels_fit(490, 80_000, 160)
    assert not labels_fit(489, 80_000, 160)
    assert not labels_fit(511, 80_000, 160)
    np.testing.assert_array_equal(
        labels_fit(np.array([500, 250]), np.array([80_000, 80_000]), 160), [True, False]
    )


def test_first_frame_from_a_sample_on():
    assert [first_from(sample, 160) for sample in (0, 1, 160, 161)] == [0, 1, 1, 2]
    np.testing.assert_array_equal(first_from(np.array([319, 320, 321]), 320), [1, 1, 2])


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0.0 s"), (59, "59.0 s"), (60, "1.0 min"), (2772, "46.2 min"), (3600, "1.0 h"),
     (4_932_000, "1,370 h")],
)  # fmt: skip
def test_amounts_of_audio(seconds, text):
    assert amount(seconds / 3600) == text


def test_lengths():
    assert samples_in(0.025) == 400
    assert resampled_length(44_100, 44_100) == 16_000
    assert resampled_length(44_101, 44_100) == 16_001
    assert resampled_length(7, 8_000) == 14


def test_layers_are_multiplied_from_either_side():
    layers = [(512, 10, 5)] + [(512, 3, 2)] * 4
    assert parse_conv_layers("[(512,10,5)] + [(512,3,2)] * 4") == layers
    assert parse_conv_layers("[(512,10,5)] + 4 * [(512,3,2)]") == layers
