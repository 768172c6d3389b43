"""Reading audio: any format, rate and channel count, and the crop that was asked for."""

import os
import pickle

import numpy as np
import pytest
import soundfile
import soxr
import torch

from music_ssl_fairseq import audio
from music_ssl_fairseq.errors import AudioError
from music_ssl_fairseq.frames import SAMPLE_RATE
from tests.audio_files import tone, write_tone

RATES = (8_000, 16_000, 22_050, 44_100, 48_000)
OPUS_RATES = (8_000, 16_000, 48_000)
LOSSY = (".ogg", ".opus", ".mp3")


def formats_and_rates():
    for suffix in (".wav", ".flac", *LOSSY):
        for rate in OPUS_RATES if suffix == ".opus" else RATES:
            yield suffix, rate


@pytest.mark.parametrize(("suffix", "rate"), formats_and_rates())
def test_a_crop_is_that_part_of_the_whole(tmp_path, suffix, rate):
    path = write_tone(tmp_path / f"x{suffix}", 4, rate, channels=2, seed=rate)
    whole = audio.read(path)
    assert whole.dtype == np.float32
    assert whole.shape == (64_000,)
    for start, length in (
        (0, 400),
        (160, 8_000),
        (12_345, 16_000),
        (40_000, 24_000),
        (62_500, 900),
    ):
        crop = audio.read(path, start, length)
        np.testing.assert_allclose(crop, whole[start : start + length], rtol=0, atol=1e-6)


@pytest.mark.parametrize(("suffix", "rate"), formats_and_rates())
def test_the_whole_is_what_was_written(tmp_path, suffix, rate):
    path = write_tone(tmp_path / f"x{suffix}", 2, rate, seed=rate)
    info = audio.probe(path)
    own = 48_000 if suffix == ".opus" else rate  # Opus is decoded at 48 kHz, whatever went in
    assert (info.num_samples, info.sample_rate, info.channels) == (2 * own, own, 1)
    written = tone(2, rate, seed=rate)[:, 0]
    if rate != SAMPLE_RATE:
        written = soxr.resample(written, rate, 16_000)
    read = audio.read(path)
    correlation = np.corrcoef(written, read)[0, 1]
    assert correlation > (0.98 if suffix in LOSSY else 0.9999)


@pytest.mark.parametrize("channels", [1, 2, 3])
def test_mono_is_the_mean_of_the_channels(tmp_path, channels):
    path = write_tone(tmp_path / "x.wav", 0.5, channels=channels)
    expected = tone(0.5, channels=channels).mean(axis=1)
    np.testing.assert_allclose(audio.read(path), expected, atol=1 / 2**15)


@pytest.mark.parametrize("rate", [8_000, 11_025, 22_050, 44_100, 48_000])
def test_resampling_of_a_band_limited_signal(tmp_path, rate):
    """Against the signal itself at the new rate, and no worse than soxr."""
    highest = 0.8 * min(rate, 16_000) / 2
    frequencies = np.random.default_rng(rate).uniform(50, highest, 20)

    def signal(sample_rate):
        time = np.arange(2 * sample_rate) / sample_rate
        return 0.02 * np.sin(2 * np.pi * frequencies[:, None] * time).sum(0)

    path = tmp_path / "x.wav"
    soundfile.write(path, signal(rate), rate, subtype="FLOAT")
    ours = audio.read(path)
    truth = signal(16_000)
    assert len(ours) == len(truth)
    inner = slice(2_000, -2_000)
    assert np.abs(ours - truth)[inner].max() < 2e-4 * np.abs(truth).max()
    reference = soxr.resample(signal(rate), rate, 16_000)
    assert np.abs(ours - reference)[inner].max() < 1e-3 * np.abs(truth).max()


def test_resampling_removes_what_would_alias(tmp_path):
    time = np.arange(2 * 48_000) / 48_000
    soundfile.write(tmp_path / "x.wav", 0.5 * np.sin(2 * np.pi * 9_000 * time), 48_000)
    assert np.abs(audio.read(tmp_path / "x.wav")[1_000:-1_000]).max() < 5e-4


@pytest.mark.parametrize("rate", RATES)
def test_length_at_16_khz(tmp_path, rate):
    for extra in (0, 1, 7):
        path = tmp_path / f"{extra}.wav"
        soundfile.write(path, np.zeros(rate + extra), rate)
        assert len(audio.read(path)) == audio.probe(path).length_at()


def test_beyond_the_end_there_is_less(tmp_path):
    path = write_tone(tmp_path / "x.flac", 1)
    assert len(audio.read(path, 15_000, 5_000)) == 1_000
    assert len(audio.read(path, 20_000, 5_000)) == 0


def test_normalise_is_layer_norm():
    waveform = tone(1)[:, 0] + np.float32(0.3)
    tensor = torch.from_numpy(waveform)
    expected = torch.nn.functional.layer_norm(tensor, tensor.shape)
    np.testing.assert_allclose(audio.normalise(waveform), expected, rtol=0, atol=2e-6)
    assert not audio.normalise(np.zeros(100, np.float32)).any()


@pytest.mark.parametrize(
    ("value", "says"),
    [
        (np.nan, "NaN or infinite"),
        (np.inf, "NaN or infinite"),
        (-np.inf, "NaN or infinite"),
        (1e30, r"as large as .*e\+(30|29)"),
        (-1e12, r"as large as .*e\+(12|11)"),
    ],
)
@pytest.mark.parametrize("rate", [16_000, 22_050])
def test_bad_samples(tmp_path, value, says, rate):
    waveform = tone(1, rate)
    waveform[9_000 * rate // 16_000] = value
    path = tmp_path / "x.wav"
    soundfile.write(path, waveform, rate, subtype="FLOAT")
    with pytest.raises(AudioError, match=says):
        audio.read(path, 8_000, 4_000)
    assert len(audio.read(path, 0, 4_000)) == 4_000


def test_loud_samples_are_no_bad_ones(tmp_path):
    path = tmp_path / "x.wav"
    soundfile.write(path, tone(1) * 2**31, 16_000, subtype="FLOAT")
    assert audio.read(path).max() > 1e8


def cut(path, share=0.5):
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])


def test_truncated_flac(tmp_path):
    path = write_tone(tmp_path / "x.flac", 4)
    cut(path)
    for part in ((0, None), (24_000, 32_000), (48_000, 8_000)):
        with pytest.raises(AudioError, match="truncated"):
            audio.read(path, *part)
    assert len(audio.read(path, 0, 8_000)) == 8_000


def test_truncated_where_the_header_follows_the_file(tmp_path):
    path = write_tone(tmp_path / "x.ogg", 4)
    cut(path)
    length = audio.probe(path).num_samples
    assert 8_000 < length < 48_000
    assert len(audio.read(path, 0, 64_000)) == length


@pytest.mark.parametrize(
    ("content", "reason"),
    [(b"", "empty"), (b"lyrics\n" * 500, "not readable as audio"), (None, "no such file")],
)
@pytest.mark.parametrize("reader", [audio.read, audio.probe])
def test_not_audio(tmp_path, content, reason, reader):
    path = tmp_path / "x.wav"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(AudioError, match=reason) as raised:
        reader(path)
    assert str(raised.value).startswith(str(path))
    again = pickle.loads(pickle.dumps(raised.value))
    assert (str(again), again.reason) == (str(raised.value), raised.value.reason)


def test_names_with_blanks_and_beyond_utf_8(tmp_path):
    name = os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9 del mar.flac")
    write_tone(name, 1)
    assert len(audio.read(name, 100, 1_000)) == 1_000
    os.truncate(name, 0)
    with pytest.raises(AudioError, match=r"caf.* del mar.flac: the file is empty") as raised:
        audio.read(name)
    str(raised.value).encode("utf-8")
