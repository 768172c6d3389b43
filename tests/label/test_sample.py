"""The sample of frames: in proportion, reproducible, and what the whole track has there."""

import numpy as np
import pytest

from music_ssl_fairseq import audio
from music_ssl_fairseq.data.manifest import Manifest, write_manifest
from music_ssl_fairseq.errors import AudioError
from music_ssl_fairseq.features import FeatureSpec, front_end
from music_ssl_fairseq.features.chunk_features import Track
from music_ssl_fairseq.label.sample import Sample, SampledTrack, SampleFeatures, places, quotas
from tests.audio_files import write_tone

CHUNKS = 1000, 100  # frames together, and apart


def test_all_frames_if_there_are_few():
    num_frames = np.array([10, 0, 5])
    assert quotas(num_frames, 15, seed=0).tolist() == [10, 0, 5]
    assert places(10, 10, seed=0, index=0).tolist() == list(range(10))


def test_quotas_follow_the_lengths():
    num_frames = np.random.default_rng(0).integers(0, 5000, 2000)
    given = quotas(num_frames, 40_000, seed=3)
    share = num_frames * 40_000 / num_frames.sum()
    assert given.sum() == 40_000
    assert (np.abs(given - share) < 1).all()
    assert (given <= num_frames).all()


def test_short_tracks_get_their_share_over_seeds():
    num_frames = np.array([1000, 10, 10, 1000])
    given = np.mean([quotas(num_frames, 101, seed) for seed in range(400)], axis=0)
    np.testing.assert_allclose(given, [50, 0.5, 0.5, 50], atol=0.1)


@pytest.mark.parametrize(("num_frames", "quota"), [(100, 1), (100, 99), (1000, 333), (7, 5)])
def test_places_are_spread_over_the_track(num_frames, quota):
    found = np.stack([places(num_frames, quota, seed, index=4) for seed in range(300)])
    assert (np.diff(found, axis=1) > 0).all()
    assert found.min() >= 0
    assert found.max() < num_frames
    taken = np.bincount(found.ravel(), minlength=num_frames) / len(found)
    assert (taken > 0).mean() > 0.9
    assert abs(taken[: num_frames // 2].sum() - quota / 2) <= 1


def test_of_long_tracks_some_spans_are_heard():
    # 40 minutes, 120 frames: a second apart they are of twelve chunks of ten seconds.
    found = np.stack([places(240_000, 120, seed, 0, *CHUNKS) for seed in range(99)])
    assert (np.diff(found, axis=1) > 0).all()
    assert found.max() < 240_000
    for row in found:
        chunks, counts = np.unique(row // 1000, return_counts=True)
        assert counts.tolist() == [10] * 12
        # One in each twelfth of the track.
        assert (chunks // 20).tolist() == list(range(12))
        assert np.array_equal(row % 1000 // 100, np.tile(np.arange(10), 12))
    assert len(np.unique(found // 1000)) > 220


@pytest.mark.parametrize(("num_frames", "quota"), [(90, 1), (1999, 3), (2001, 19), (30_000, 299)])
def test_spans_of_short_tracks_and_small_quotas(num_frames, quota):
    found = places(num_frames, quota, 0, 0, *CHUNKS)
    assert len(found) == quota
    assert (np.diff(found) > 0).all()
    assert 0 <= found.min() <= found.max() < num_frames


def test_places_are_single_frames_where_they_are_closer_than_that():
    expected = places(1000, 10, seed=1, index=2)
    assert expected.tolist() == places(1000, 10, 1, 2, *CHUNKS).tolist()
    assert (expected // 100).tolist() == list(range(10))


def test_places_depend_on_seed_and_index_alone():
    first = places(1000, 50, seed=1, index=2)
    np.testing.assert_array_equal(first, places(1000, 50, seed=1, index=2))
    assert (first != places(1000, 50, seed=2, index=2)).any()
    assert (first != places(1000, 50, seed=1, index=3)).any()


def test_reader_gives_the_whole_tracks_frames(tmp_path):
    path = write_tone(tmp_path / "a.flac", 14)
    whole = front_end("mfcc").features(audio.read(path))
    # Neighbours, a near one, one far enough to seek to, the first and the last.
    wanted = np.array([0, 200, 201, 260, 900, len(whole) - 1])
    track = Track(str(path), 14 * 16_000)
    missing = SampledTrack(Track(str(tmp_path / "b.flac"), 16_000), np.array([3, 5]))
    nothing = SampledTrack(track, np.zeros(0, np.int64))
    found = SampleFeatures(FeatureSpec("mfcc"))([missing, SampledTrack(track, wanted), nothing])
    assert isinstance(found[0], AudioError)
    np.testing.assert_allclose(found[1], whole[wanted], atol=2e-3)
    assert found[2].shape == (0, 39)


def three_tracks(folder) -> Manifest:
    tracks = [("a.wav", 16_000), ("short.wav", 399), ("b.wav", 32_000)]
    write_manifest(folder / "train.tsv", "/music", tracks)
    return Manifest(folder / "train.tsv")


def test_sample_leaves_out_tracks_without_frames(tmp_path):
    sample = Sample(three_tracks(tmp_path), front_end("mfcc"), max_frames=60, seed=0)
    parts = [sample.part(index) for index in range(3)]
    assert [part.track.path for part in parts] == [
        "/music/a.wav",
        "/music/short.wav",
        "/music/b.wav",
    ]
    assert len(parts[1].frames) == 0
    assert sum(len(part.frames) for part in parts) == sample.total == 60
