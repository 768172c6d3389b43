"""Features by name: what there is, what can be joined, and how each part is scaled."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from music_ssl_fairseq.errors import InputError
from music_ssl_fairseq.features import FRONT_ENDS, FeatureSpec, front_end
from music_ssl_fairseq.features.framewise import SCATTER, Concatenation
from music_ssl_fairseq.frames import FrameGrid
from tests.audio_files import tone

PACKAGE = "music_ssl_fairseq.features"
DIMENSIONS = {"mfcc": 39, "mfcc60": 60, "logmel": 80, "chroma": 12, "cqt": 84}


@pytest.mark.parametrize("name", [*FRONT_ENDS, "mfcc+chroma"])
@pytest.mark.parametrize("num_samples", [0, 399, 400, 16_000])
def test_front_ends_are_what_they_say(name, num_samples):
    front = front_end(name)
    waveform = np.ascontiguousarray(tone(1.0)[:num_samples, 0])
    before = waveform.copy()
    frames = front.features(waveform)
    assert frames.shape == (front.grid.num_frames(num_samples), front.dimension)
    assert front.dimension == sum(DIMENSIONS[part] for part in name.split("+"))
    assert frames.dtype == np.float32
    assert np.isfinite(frames).all()
    np.testing.assert_array_equal(waveform, before)


def test_modules_are_those_that_a_front_end_needs():
    assert FeatureSpec("mfcc60+cqt+mfcc").modules == [f"{PACKAGE}.mfcc", f"{PACKAGE}.cqt"]
    assert FeatureSpec("deep", "a.pt", 6).modules == [f"{PACKAGE}.deep"]


def test_each_is_made_once():
    assert front_end(FeatureSpec("cqt")) is front_end(FeatureSpec("cqt"))


def test_parts_are_scaled_by_their_scatter():
    waveform = tone(2.0)[:, 0]
    joined = front_end("chroma+mfcc").features(waveform)
    chroma, mfcc = (front_end(name).features(waveform) for name in ("chroma", "mfcc"))
    np.testing.assert_allclose(joined[:, :12], chroma / SCATTER["chroma"] ** 0.5, rtol=1e-5)
    np.testing.assert_allclose(joined[:, 12:], mfcc / SCATTER["mfcc"] ** 0.5, rtol=1e-5)
    assert SCATTER.keys() == FRONT_ENDS.keys()


def test_sets_are_side_by_side_as_they_are():
    waveform = tone(2.0)[:, 0]
    found = front_end("chroma,mfcc+chroma").features(waveform)
    parts = [front_end(name).features(waveform) for name in ("chroma", "mfcc+chroma")]
    np.testing.assert_allclose(found, np.concatenate(parts, axis=1), rtol=1e-6)


@pytest.mark.parametrize("name", FRONT_ENDS)
def test_parts_have_about_equal_say(name):
    frames = np.concatenate([front_end(name).features(tone(8, seed=i)[:, 0]) for i in range(4)])
    assert 0.1 < frames.var(axis=0).sum() / SCATTER[name] < 4


def test_different_frames_cannot_be_joined():
    coarse: Any = SimpleNamespace(grid=FrameGrid(400, 320))
    with pytest.raises(InputError, match=r"mfcc\+coarse: .* per second: mfcc 100, coarse 50"):
        Concatenation({"mfcc": front_end("mfcc"), "coarse": coarse})


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"name": "mfccs"}, "no features called 'mfccs'; there are: mfcc, mfcc60, .* and deep"),
        ({"name": "mfcc+"}, "no features called ''"),
        ({"name": "mfcc+mfcc"}, "names the same features twice"),
        ({"name": "mfcc,cqt,mfcc"}, "names the same features twice"),
        ({"name": "mfcc+deep"}, r"mfcc\+deep: deep cannot be joined with others"),
        ({"name": "deep", "layer": 6}, "--features deep needs --checkpoint"),
        ({"name": "deep", "checkpoint": "a.pt"}, r"a\.pt: no such checkpoint"),
        ({"name": "deep", "checkpoint": "a.pt", "layer": -1}, "--layer -1: layers are counted"),
        ({"name": "mfcc", "layer": 6}, "--layer goes with --features deep, not with mfcc"),
        ({"name": "cqt", "checkpoint": "a.pt"}, "--checkpoint goes with --features deep"),
    ],
)
def test_what_cannot_be(arguments, says):
    with pytest.raises(InputError, match=says):
        FeatureSpec(**arguments)
