"""Parts of a track have the same features as the whole."""

from itertools import pairwise

import numpy as np
import pytest

from music_ssl_fairseq import audio
from music_ssl_fairseq.errors import AudioError
from music_ssl_fairseq.features import FRONT_ENDS, front_end
from music_ssl_fairseq.features.chunk_features import Track, check_length
from tests.audio_files import write_tone
from tests.features.track_features import track_features

MFCC = front_end("mfcc")


@pytest.mark.parametrize(
    ("suffix", "rate", "channels"), [(".flac", 16000, 1), (".wav", 44100, 2), (".ogg", 48000, 2)]
)
def test_windows_equal_the_whole_track(tmp_path, suffix, rate, channels):
    path = write_tone(tmp_path / f"a{suffix}", 7.3, rate, channels)
    waveform = audio.read(path)
    whole = MFCC.features(waveform)
    track = Track(str(path), len(waveform))
    for width in (1, 7, 100, 300, len(whole)):
        windows = [
            track_features(MFCC, track, first, min(len(whole), first + width))
            for first in range(0, len(whole), width)
        ]
        np.testing.assert_allclose(np.concatenate(windows), whole, atol=2e-3)


@pytest.mark.parametrize("name", [*FRONT_ENDS, "mfcc+chroma", "cqt+mfcc60+logmel"])
def test_windows_of_any_features_equal_the_whole_track(tmp_path, name):
    # 100 samples after the last frame: no window sees them, so the whole must not either.
    path = write_tone(tmp_path / "a.flac", 4.05)
    waveform = audio.read(path)[: 400 + 400 * 160 + 100]
    front = front_end(name)
    whole = front.features(waveform)
    track = Track(str(path), len(waveform))
    bounds = [0, 1, 30, 180, 400, len(whole)]
    parts = [track_features(front, track, *part) for part in pairwise(bounds)]
    # Powers of ten and more below the loudest, the spectrum's rounding shows.
    error = np.abs(np.concatenate(parts) - whole)
    assert len(whole) == 401
    assert error.max() <= 0.02 * whole.std()


def test_only_the_part_is_decoded(tmp_path, monkeypatch):
    path = write_tone(tmp_path / "a.flac", 5)
    asked = []
    read = audio.read

    def watched(path, start, num_samples):
        asked.append((start, num_samples))
        return read(path, start, num_samples)

    monkeypatch.setattr(audio, "read", watched)
    track_features(MFCC, Track(str(path), 80_000), 100, 110)
    assert asked == [(96 * 160, 400 + 17 * 160)]


def test_a_file_that_ends_early_is_filled_up(tmp_path):
    path = write_tone(tmp_path / "a.flac", 2)
    stated = Track(str(path), 32_000 + 1000)
    check_length(stated)
    frames = track_features(MFCC, stated, 0, MFCC.grid.num_frames(33_000))
    filled = np.pad(audio.read(path), (0, 1000))
    np.testing.assert_array_equal(frames, MFCC.features(filled))


@pytest.mark.parametrize("off", [-1601, 1601])
def test_another_length_than_the_manifests(tmp_path, off):
    path = write_tone(tmp_path / "a.flac", 2)
    check_length(Track(str(path), 32_000 + (off - off // 1601)))
    with pytest.raises(AudioError, match=r"a\.flac: lasts 2\.00 s, .*rebuild the manifest"):
        check_length(Track(str(path), 32_000 + off))


def test_a_file_that_is_gone():
    with pytest.raises(AudioError, match=r"gone\.flac: no such file"):
        check_length(Track("gone.flac", 16_000))
