"""`features`: any rate, any length, and no seams."""

import io
from itertools import pairwise

import numpy as np
import pytest
import torch

from music_ssl_fairseq import audio
from music_ssl_fairseq.errors import InputError
from music_ssl_fairseq.frames import FrameGrid
from music_ssl_fairseq.upstream import load
from music_ssl_fairseq.upstream.windows import Windowing, add_share, plan, sections
from tests import checkpoints
from tests.audio_files import tone, write_tone

GRID = FrameGrid(window=400, hop=320)
SHORT = Windowing(seconds=8.0, whole=8.0)
LAYER_NORM = {"extractor_mode": "layer_norm", "layer_norm_first": True}


def upstream(tmp_path, family: str = "music_hubert", normalize: bool = False, **fields):
    torch.manual_seed(0)
    model = checkpoints.MODELS[family](**fields)
    return load(checkpoints.write(tmp_path / "x.pt", family, model, normalize))


@pytest.mark.parametrize("frames", [1, 399, 400, 401, 2000, 12_345, 360_000])
def test_windows_cover_each_frame_once(frames):
    windows = plan(GRID.num_samples(frames), GRID, SHORT)
    shares = np.zeros(frames)
    done = 0
    for window in windows:
        assert window.first == done
        assert window.num_frames == len(window.weights) == GRID.num_frames(window.num_samples)
        assert (window.start, window.num_frames) == (320 * window.first, windows[0].num_frames)
        shares[window.first : window.last] += window.weights
        done += window.done
    assert done == window.last == frames
    np.testing.assert_allclose(shares, 1, atol=1e-6)
    for one, two in pairwise(windows):
        assert one.last - two.first >= 150  # 3 s
        # The last 1.3 s before an inner end are not used: what sees zeros beyond it.
        assert not one.weights[-64:].any()
        assert not two.weights[:64].any()


def test_tracks_up_to_a_window_and_a_half_stay_whole():
    assert len(plan(45 * 16_000, GRID)) == 1
    first, second = plan(45 * 16_000 + 320, GRID)
    assert first.num_samples == second.num_samples < 30 * 16_000


def test_stitched_windows_of_the_same_values_are_those_values():
    values = torch.randn(2, 3000, 5)
    windows = plan(GRID.num_samples(3000), GRID, SHORT)
    assert len(windows) > 10
    found = torch.zeros_like(values)
    for window in windows:
        add_share(found, 0, window, values[:, window.first : window.last])
    torch.testing.assert_close(found, values, rtol=0, atol=1e-6)


def test_sections_hold_all_windows_and_no_more_audio_than_they_may():
    num_samples = 2 * 3600 * 16_000 + 123
    found = sections(num_samples, GRID)
    windows = plan(num_samples, GRID)
    assert [w.first for section in found for w in section.windows] == [w.first for w in windows]
    assert len(found) == 13
    for section in found:
        assert 16_000 * 500 < section.num_samples <= 16_000 * 600
        last = section.windows[-1]
        assert section.part(torch.zeros(section.num_samples), last).numel() == last.num_samples
    assert found[-1].start + found[-1].num_samples == num_samples
    (only,) = sections(10 * 60 * 16_000, GRID)
    assert (only.start, only.num_samples) == (0, 10 * 60 * 16_000)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"seconds": 5.0}, "half a window"),
        ({"overlap": 1.0}, "must be between"),
        ({"whole": 20.0}, "must not be longer"),
        ({"section": 60.0}, "too short"),
    ],
)
def test_windows_that_cannot_be_joined_are_refused(settings, message):
    with pytest.raises(InputError, match=message):
        Windowing(**settings)


def test_features_of_a_short_track_are_its_layers(tmp_path):
    model = upstream(tmp_path)
    waveform = tone(1.0)[:, 0]
    features = model.features(waveform, 16_000)
    assert features.layers.shape == (4, 49, 32)
    assert features.numbers == [0, 1, 2, 3]
    expected = torch.stack(model.layers(torch.from_numpy(waveform)[None]))[:, 0]
    torch.testing.assert_close(features.layers, expected, rtol=0, atol=0)
    torch.testing.assert_close(features.mean(), expected.mean(1))
    np.testing.assert_array_equal(features.numpy(), expected)
    assert features.times[[0, 1, -1]].tolist() == [0.0125, 0.0325, 0.9725]
    for one in (torch.from_numpy(waveform), waveform.astype(np.float64), waveform.tolist()):
        assert torch.equal(model.features(one, 16_000).layers, features.layers)


@pytest.mark.parametrize(
    ("layers", "numbers"), [([3, 1], [3, 1]), (-1, [3]), (np.arange(2), [0, 1]), (np.int64(2), [2])]
)
def test_layers_are_numbered_from_either_end(tmp_path, layers, numbers):
    model = upstream(tmp_path)
    waveform = tone(1.0)[:, 0]
    found = model.features(waveform, 16_000, layers)
    assert found.numbers == numbers
    assert torch.equal(found.layers, model.features(waveform, 16_000).layers[numbers])
    assert repr(found) == (
        f"Features(layers {', '.join(map(str, numbers))}: 49 frames of 32 values, 0.01 to 0.97 s)"
    )


@pytest.mark.parametrize("rate", [8_000, 22_050, 44_100, 48_000])
def test_resampling_is_that_of_files(tmp_path, rate):
    path = write_tone(tmp_path / "x.wav", 1.5, rate)
    whole = audio.read(path, sample_rate=rate)
    resampled = audio.resample(np.stack([whole, -whole]), rate)
    expected = audio.read(path)
    assert resampled.dtype == np.float32
    np.testing.assert_allclose(resampled, np.stack([expected, -expected]), atol=1e-6)
    model = upstream(tmp_path)
    torch.testing.assert_close(
        model.features(whole, rate).layers,
        model.features(expected, 16_000).layers,
        rtol=1e-4,
        atol=1e-4,
    )


def changing_music(seconds: float) -> np.ndarray:
    """Notes that become 30 dB louder on the way, about a mean that is not zero."""
    loudness = 10 ** np.linspace(-1.5, 0, round(seconds * 16_000))
    return (tone(seconds)[:, 0] * loudness + 0.01).astype(np.float32)


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("fields", [{}, LAYER_NORM], ids=["group norm", "layer norm"])
def test_windows_come_close_to_the_whole_and_show_no_seams(tmp_path, fields, normalize):
    """Layer 0 is the whole's to rounding; above, attention sees only the window: here 2 %."""
    model = upstream(tmp_path, normalize=normalize, **fields)
    waveform = changing_music(30.0)
    whole = torch.stack(model.layers(torch.from_numpy(waveform)[None]))[:, 0]
    windowed = model.features(waveform, 16_000, windowing=SHORT).layers
    assert len(plan(len(waveform), GRID, SHORT)) == 6
    difference = windowed - whole
    varies = (whole - whole.mean(1, keepdim=True)).norm(dim=(1, 2))
    share = difference.norm(dim=(1, 2)) / varies
    assert share[0] < 1e-4
    assert (share < 0.02).all()
    # The difference nowhere jumps from frame to frame, compared with what the music does.
    steps = whole.diff(dim=1).norm(dim=-1).square().mean(1).sqrt()
    assert (difference.diff(dim=1).norm(dim=-1).amax(1) / steps < 0.02).all()


def test_without_the_sections_statistics_windows_would_differ(tmp_path):
    """Each window normalised alone is as loud as the others: the test above rules this out."""
    model = upstream(tmp_path)
    waveform = torch.from_numpy(changing_music(30.0))[None]
    whole = model.layers(waveform)[0]
    alone = model.layers(waveform[:, : 8 * 16_000])[0]
    same = whole[:, : alone.size(1)]
    assert (alone - same).norm() > 0.3 * (whole - whole.mean(1)).norm() * (8 / 30) ** 0.5


def test_long_tracks_come_in_sections(tmp_path):
    model = upstream(tmp_path, normalize=True)
    windowing = Windowing(seconds=6.0, whole=6.0, section=14.0)
    waveform = tone(40.0)[:, 0]
    assert len(sections(len(waveform), GRID, windowing)) == 5
    whole = torch.stack(model.layers(torch.from_numpy(waveform)[None]))[:, 0]
    windowed = model.features(waveform, 16_000, windowing=windowing).layers
    varies = (whole - whole.mean(1, keepdim=True)).norm(dim=(1, 2))
    assert ((windowed - whole).norm(dim=(1, 2)) / varies < 0.15).all()


ONES = np.ones((16_000, 2))


@pytest.mark.parametrize(
    ("audio", "options", "message"),
    [
        (np.zeros(0), {}, r"waveform: 0\.000 s of audio is less than one frame \(0\.025 s\)"),
        (ONES, {}, r"\(16000, 2\): say which axis is which, channels='first' for \[C, T\]"),
        (ONES, {"channels": "first"}, "16000 channels: did you mean channels='last'"),
        (ONES, {"channels": 2}, "channels=2: expected 'first'"),
        (np.zeros((1, 2, 16_000)), {}, r"expected \[T\], or \[C, T\] or"),
        (np.zeros(16_000, np.int16), {}, "divide them by full scale"),
        (32_767 * ONES[:, 0], {}, r"samples up to \d+; expected floats in .*: divide integers"),
        (np.zeros(16_000, bool), {}, "waveform holds bool"),
        (torch.full((16_000,), torch.nan), {}, "waveform: holds NaN or infinite samples"),
        ([ONES[:, 0], -np.inf * ONES[:, 0]], {}, "clip 1: holds NaN"),
        ([ONES[:, 0], [[1.0], [1.0, 2.0]]], {}, "clip 1: not an array"),
        ("no.wav", {}, r"^no\.wav: no such file"),
        ("https://example.org/a.mp3", {}, "a.mp3: no such file; download it first"),
        ((ONES[:, 0], 16_000), {}, "clip 1 is 16000, no audio: a rate goes into sample_rate="),
        (["a.wav", None], {}, "clip 1 is NoneType; expected the name of a file"),
        (io.BytesIO(b"fLaC"), {}, "waveform is BytesIO; expected the name of a file"),
        (ONES[:, 0], {"sample_rate": None}, "sample_rate is missing"),
        (ONES[:, 0], {"sample_rate": 0}, "sample_rate 0: expected a whole number of Hz"),
        (ONES[:, 0], {"sample_rate": 16_000.5}, "sample_rate 16000.5"),
        (ONES[:, 0], {"layers": []}, "no layer chosen"),
        (ONES[:, 0], {"layers": "all"}, "layers='all': expected numbers"),
        (ONES[:, 0], {"layers": 1.5}, r"layers=1\.5: expected numbers"),
    ],
)
def test_audio_that_is_none_is_refused(tmp_path, audio, options, message):
    model = upstream(tmp_path)
    for method in (model.features, model.embed):
        with pytest.raises(InputError, match=message):
            method(audio, **{"sample_rate": 16_000, **options})


def test_batches_that_are_none_are_refused(tmp_path):
    model = upstream(tmp_path)
    nan = torch.zeros(1, 16_000)
    nan[0, 7] = torch.nan
    for method in (model, model.layers):
        with pytest.raises(InputError, match="less than one frame"):
            method(torch.zeros(1, 399))
        with pytest.raises(InputError, match=r"expected \[B, T\]"):
            method(torch.zeros(16_000))
        with pytest.raises(InputError, match="NaN"):
            method(nan)
        with pytest.raises(InputError, match="all of a waveform: True is for padding"):
            method(torch.zeros(1, 16_000), torch.ones(1, 16_000, dtype=torch.bool))
        with pytest.raises(InputError, match=r"is torch\.int16; expected a tensor of floats"):
            method(torch.zeros(1, 16_000, dtype=torch.int16))
        with pytest.raises(InputError, match="padding_mask is list; expected a tensor of bool"):
            method(torch.zeros(1, 16_000), [[False] * 16_000])
        with pytest.raises(InputError, match="meta device, which holds no samples"):
            method(torch.zeros(1, 16_000, device="meta"))
    with pytest.raises(InputError, match="meta device, which holds no samples"):
        model.features(torch.zeros(16_000, device="meta"), 16_000)
    with pytest.raises(InputError, match="meta device, which holds no weights"):
        load(model.path, "meta").layers(torch.zeros(1, 16_000))
    with pytest.raises(InputError, match="device='gpu': "):
        load(model.path, "gpu")
    with pytest.raises(InputError, match=r"weights are torch\.float16: keep them in float32"):
        model.half()(torch.zeros(1, 16_000))
    with pytest.raises(InputError, match="precision='fp64': expected one of auto, fp32, bf16"):
        load(model.path, precision="fp64")


@pytest.mark.parametrize("layer", [-5, 4])
def test_a_layer_out_of_range_is_named(tmp_path, layer):
    model = upstream(tmp_path)
    with pytest.raises(InputError, match=rf"x\.pt: has no layer {layer}, only 0 .* to 3"):
        model.features(np.zeros(16_000), 16_000, [layer])


def test_layers_above_can_be_dropped(tmp_path):
    model = upstream(tmp_path)
    expected = model.features(tone(1.0)[:, 0], 16_000, [0, 2]).layers
    fingerprint = model.fingerprint
    with torch.no_grad():
        model.model.layer_norm.weight += 1
    assert model.fingerprint != fingerprint
    with torch.no_grad():
        model.model.layer_norm.weight -= 1
    model.drop_above(2)
    assert len(model.layers(torch.zeros(1, 16_000))) == 3
    assert torch.equal(model.features(tone(1.0)[:, 0], 16_000, [0, -1]).layers, expected)
    assert model.embed(tone(1.0)[:, 0], 16_000).shape == (1, model.dimension)
    with pytest.raises(InputError, match=r"has no layer 3, only 0 .* to 2"):
        model.features(tone(1.0)[:, 0], 16_000, 3)
    assert model.fingerprint == fingerprint
