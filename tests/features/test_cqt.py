"""Constant-Q transform against its definition and librosa; chroma against librosa's."""

import numpy as np
import pytest

from music_ssl_fairseq.features import cqt
from music_ssl_fairseq.features.cqt import Chroma
from music_ssl_fairseq.runtime.imports import import_librosa
from tests.audio_files import tone

MUSIC = np.concatenate([tone(4, seed=seed)[:, 0] for seed in range(4)])  # more than a block


def sine(frequency: float, amplitude: float, seconds: float = 2.0) -> np.ndarray:
    time = np.arange(round(seconds * 16000)) / 16000
    return (amplitude * np.sin(2 * np.pi * frequency * time)).astype(np.float32)


@pytest.mark.parametrize("band", [0, 1, 21, 45, 83])
def test_equals_its_definition(band):
    # A Hann window of Q periods, centred on the frame: computed sample by sample.
    frequency = 440 * 2 ** ((band - 45) / 12)
    length = 16000 / frequency / ((2 ** (1 / 6) - 1) / (2 ** (1 / 6) + 1))
    offsets = np.arange(-int(length / 2), int(length / 2) + 1)
    window = 0.5 + 0.5 * np.cos(2 * np.pi * offsets / length)
    kernel = 2 * window / window.sum() * np.exp(-2j * np.pi * frequency * offsets / 16000)
    ours = cqt.magnitudes(MUSIC)[:, band]
    padded = np.pad(MUSIC[: 400 + 160 * (len(ours) - 1)].astype(float), 8000)
    for frame in (0, 1, 17, 500, 970, 971, 1100, len(ours) - 1):
        centre = 8000 + 160 * frame + 200
        there = padded[centre + offsets[0] : centre + offsets[-1] + 1]
        assert ours[frame] == pytest.approx(abs(there @ kernel), abs=1e-5)


def test_equals_librosas():
    librosa = import_librosa()
    # librosa centres frame t on sample 160 t, ours is on 160 t + 200, and its gain is by length.
    theirs = np.abs(
        librosa.cqt(
            MUSIC[:64_000],
            sr=16000,
            hop_length=160,
            fmin=librosa.note_to_hz("C1"),
            n_bins=84,
            sparsity=0,
            scale=False,
            pad_mode="constant",
        )
    ).T
    frequencies = librosa.cqt_frequencies(84, fmin=librosa.note_to_hz("C1"))
    lengths, _ = librosa.filters.wavelet_lengths(freqs=frequencies, sr=16000)
    theirs = 2 * theirs / lengths
    ours = cqt.magnitudes(np.pad(MUSIC[:64_000], (200, 400)))[: len(theirs)]
    # 1 %: librosa halves the sample rate from octave to octave, each time with some loss.
    assert np.square(ours - theirs).mean() < 1e-4 * np.square(theirs).mean()


@pytest.mark.parametrize("amplitude", [1.0, 1e-2])
@pytest.mark.parametrize("band", [3, 45, 80])
def test_levels_are_those_of_sines(band, amplitude):
    levels = cqt.Cqt().features(sine(440 * 2 ** ((band - 45) / 12), amplitude))
    middle = levels[60:-60]
    assert (middle.argmax(axis=1) == band).all()
    np.testing.assert_allclose(middle[:, band], 20 * np.log10(amplitude), atol=0.1)
    assert levels.min() == pytest.approx(-80)


def test_silence_has_the_lowest_level_and_no_pitch():
    silence = np.zeros(8000, np.float32)
    np.testing.assert_allclose(cqt.Cqt().features(silence), -80, rtol=1e-6)
    np.testing.assert_array_equal(Chroma().features(silence), 0)


def test_chroma_equals_librosas_of_the_same_transform():
    theirs = import_librosa().feature.chroma_cqt(
        C=cqt.magnitudes(MUSIC).T, sr=16000, fmin=cqt.LOWEST, bins_per_octave=12, tuning=0
    )
    np.testing.assert_allclose(Chroma().features(MUSIC), theirs.T, atol=1e-5)


def test_chroma_names_the_notes_of_a_chord():
    chord = sum(sine(440 * 2 ** (step / 12), 0.2) for step in (-9, -5, 10))  # C4, E4, G5
    frame = Chroma().features(chord)[100]
    assert sorted(np.argsort(frame)[-3:]) == [0, 4, 7]


def test_hiss_is_no_chord():
    hiss = np.random.default_rng(0).standard_normal(16_000).astype(np.float32)
    assert Chroma().features(1e-4 * hiss).max() < 0.2
    assert Chroma().features(1e-1 * hiss).max() == 1
