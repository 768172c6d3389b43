"""Windows, and the cache of their features."""

import json
import os
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile
import torch

from music_ssl_fairseq.data.manifest import Manifest, write_manifest
from music_ssl_fairseq.errors import AudioError, InputError
from music_ssl_fairseq.frames import SAMPLE_RATE, FrameGrid
from music_ssl_fairseq.probing.features import cache
from music_ssl_fairseq.probing.features.cache import Clip, FeatureCache, clip_at
from music_ssl_fairseq.probing.features.fill import WindowPlan, feature_identity, fill
from music_ssl_fairseq.probing.features.source import EncoderSource, open_source
from music_ssl_fairseq.probing.features.windows import (
    ClipWindow,
    cut_windows,
    frames_of,
    to_frame_rate,
)
from tests.full_disk import full_disk


def test_windows_of_a_clip():
    whole = [ClipWindow(0, 10), ClipWindow(10, 10)]
    assert cut_windows(0, 30, 10, 5) == [*whole, ClipWindow(20, 10)]
    assert cut_windows(0, 25, 10, 5) == [*whole, ClipWindow(20, 5)]
    assert cut_windows(0, 24, 10, 5) == whole
    assert cut_windows(3, 7, 10, 5) == [ClipWindow(3, 4)]
    assert cut_windows(3, 70, 0, 0) == [ClipWindow(3, 67)]


def test_the_rest_of_a_clip_is_a_window_from_half_of_one_on():
    clip = Clip("", 5, 5 + 25, "")
    assert WindowPlan(10 / SAMPLE_RATE, False).windows(clip)[-1] == ClipWindow(25, 5)
    shorter = clip._replace(stop=clip.stop - 1)
    assert WindowPlan(10 / SAMPLE_RATE, False).windows(shorter)[-1] == ClipWindow(15, 10)


def test_windows_of_frames_lose_no_frame():
    windows = WindowPlan(5.0, True).windows(Clip("", 0, 16000 * 7 + 5000, ""))
    assert [window.num_samples for window in windows] == [80000, 37000]
    assert sum(frames_of(window) for window in windows) == 250 + 115


def test_features_of_other_rates_become_fifty_a_second():
    fast = torch.arange(40.0)[:, None]
    np.testing.assert_allclose(
        to_frame_rate(fast, FrameGrid(400, 160), 5)[:, 0], [0.5, 2.5, 4.5, 6.5, 8.5]
    )
    slow = torch.arange(4.0)[:, None]
    np.testing.assert_allclose(
        to_frame_rate(slow, FrameGrid(800, 640), 9)[:, 0], [0, 0, 1, 1, 2, 2, 3, 3, 3]
    )
    same = torch.arange(4.0)[:, None]
    np.testing.assert_allclose(to_frame_rate(same, FrameGrid(400, 320), 5)[:, 0], [0, 1, 2, 3, 3])


class Counting:
    """Two layers that are easily checked: the mean of the samples, and their largest."""

    name, fingerprint, layer_names = "counting", "ab" * 32, ("0", "1")
    dimension = frame_dimension = 3
    grid = FrameGrid(400, 320)
    standardise, precision = False, "fp32"

    def __init__(self):
        self.windows = 0

    def clip_features(self, waveforms):
        self.windows += len(waveforms)
        both = np.stack([waveforms.mean(1), waveforms.max(1)], 1)
        return np.repeat(both[:, :, None], 3, 2).astype(np.float32)

    def frame_features(self, waveforms, num_frames):
        self.windows += len(waveforms)
        frames = np.stack(
            [waveforms[:, t * 320 : t * 320 + 400].mean(1) for t in range(num_frames)], 1
        )
        return np.broadcast_to(frames[:, :, None, None], (*frames.shape, 2, 3)).astype(np.float16)


@pytest.fixture
def manifest(tmp_path):
    rng = np.random.default_rng(0)
    names = []
    for i, seconds in enumerate((2.0, 3.3, 0.7, 2.0)):
        names.append((f"{i}.wav", round(seconds * SAMPLE_RATE)))
        soundfile.write(
            tmp_path / names[-1][0], 0.1 * rng.standard_normal(names[-1][1]), SAMPLE_RATE, "FLOAT"
        )
    write_manifest(tmp_path / "all.tsv", tmp_path, names)
    return Manifest(tmp_path / "all.tsv")


def clips_of(manifest):
    return [clip_at(manifest.path(i), 0, n) for i, n in enumerate(manifest.num_samples.tolist())]


def open_store(folder, source, plan, limit=10**9):
    return FeatureCache(folder / "cache", feature_identity(source, plan), limit, source.name)


def test_a_file_that_was_replaced_has_another_key(manifest):
    path = Path(manifest.path(2))
    before, status = clip_at(str(path), 0, 900).key, path.stat()
    path.write_bytes(path.read_bytes()[:-4] + b"\0\0\0\0")
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert path.stat().st_size == status.st_size
    assert clip_at(str(path), 0, 900).key != before


@pytest.mark.parametrize("batch_seconds", [0.1, 2.5, 100])
def test_windows_have_their_own_features_whatever_the_batch(tmp_path, manifest, batch_seconds):
    source, plan = Counting(), WindowPlan(1.0, False, batch_seconds)
    store = open_store(tmp_path, source, plan)
    clips = clips_of(manifest)
    fill(store, source, plan, clips)
    assert source.windows == 2 + 3 + 1 + 2
    for clip in clips:
        samples = soundfile.read(clip.path, dtype="float32")[0]
        vectors = store.vectors(clip.key)
        for vector, window in zip(vectors, plan.windows(clip), strict=True):
            part = samples[window.start : window.start + window.num_samples]
            np.testing.assert_allclose(vector[0], part.mean(), atol=1e-6)
            np.testing.assert_allclose(vector[1], part.max(), atol=1e-6)


def test_frames_go_on_over_the_ends_of_windows(tmp_path, manifest):
    source, plan = Counting(), WindowPlan(1.0, True)
    store = open_store(tmp_path, source, plan)
    clip = clips_of(manifest)[1]
    fill(store, source, plan, [clip])
    vectors = store.vectors(clip.key)
    assert vectors.dtype == np.float16
    assert len(vectors) == 165
    samples = soundfile.read(clip.path, dtype="float32")[0]
    expected = [samples[t * 320 : t * 320 + 400].mean() for t in range(165)]
    np.testing.assert_allclose(vectors[:, 0, 0], expected, atol=2e-4)


def test_nothing_is_computed_twice_and_tasks_share(tmp_path, manifest):
    source, plan = Counting(), WindowPlan(1.0, False)
    fill(open_store(tmp_path, source, plan), source, plan, clips_of(manifest)[:2])
    computed = source.windows
    again = open_store(tmp_path, source, plan)
    fill(again, source, plan, clips_of(manifest)[:2])
    assert source.windows == computed
    fill(again, source, plan, clips_of(manifest))  # another task, with two more files
    assert source.windows == computed + 3
    other = open_store(tmp_path, source, WindowPlan(0.5, False))
    assert clips_of(manifest)[0].key not in other


def test_a_file_is_digested_once_per_process(tmp_path, manifest, monkeypatch):
    source, plan, clips = Counting(), WindowPlan(1.0, False), clips_of(manifest)
    fill(open_store(tmp_path, source, plan), source, plan, clips)
    digested = []
    monkeypatch.setattr(cache, "_checksum", lambda file, _: digested.append(file))
    again = open_store(tmp_path, source, plan)
    assert all(clip.key in again for clip in clips)
    assert digested == []
    os.utime(next(again.folder.glob("*.npy")))
    assert clips[0].key not in open_store(tmp_path, source, plan)
    assert len(digested) == 1


@pytest.mark.parametrize("num_frames", [4, 5, 7])
def test_frames_of_an_encoder_are_rounded_as_numpy_rounds(num_frames):
    hidden = [torch.randn(2, 5, 64) * 10.0**power for power in (0, 4, 6, -6)]
    encoder = SimpleNamespace(
        **{"fingerprint": "", "precision": "fp32", "num_layers": 3, "dimension": 64},
        grid=FrameGrid(400, 320),
        layers=lambda _: hidden,
    )
    source = EncoderSource(encoder, "", "")  # type: ignore[arg-type]
    found = source.frame_features(np.zeros((2, 1), np.float32), num_frames)
    places = np.arange(num_frames).clip(max=4)
    expected = np.clip(torch.stack(hidden, 2).numpy()[:, places], -65504, 65504)
    np.testing.assert_array_equal(found, expected.astype(np.float16))
    assert found.dtype == np.float16


def test_features_of_another_precision_are_others(tmp_path, manifest):
    plan, clips = WindowPlan(5.0, False), clips_of(manifest)
    source = Counting()
    fill(open_store(tmp_path, source, plan), source, plan, clips)
    source.precision = "bf16"
    assert clips[0].key not in open_store(tmp_path, source, plan)


def test_a_changed_file_is_computed_again(tmp_path, manifest):
    before = clips_of(manifest)[0]
    soundfile.write(before.path, np.zeros(2 * SAMPLE_RATE), SAMPLE_RATE, "FLOAT")
    assert clips_of(manifest)[0].key != before.key


def test_what_was_computed_before_an_interruption_is_kept(tmp_path, manifest):
    source, plan = Counting(), WindowPlan(1.0, False)
    clips = clips_of(manifest)
    Path(clips[3].path).write_bytes(b"no audio")
    store = open_store(tmp_path, source, plan)
    store.add(clips[0].key, np.zeros((2, 2, 3), np.float32))
    with pytest.raises(AudioError, match=r"3\.wav: not readable as audio"):
        fill(store, source, plan, clips)
    assert clips[0].key in open_store(tmp_path, source, plan)


def test_a_shard_without_its_index_does_not_count(tmp_path, manifest):
    source, plan = Counting(), WindowPlan(1.0, False)
    clips = clips_of(manifest)
    fill(open_store(tmp_path, source, plan), source, plan, clips)
    folder = open_store(tmp_path, source, plan).folder
    assert json.loads((folder / "about.json").read_text())["upstream"] == "counting"
    index = next(file for file in folder.glob("*.json") if file.name != "about.json")
    index.unlink()
    assert clips[0].key not in open_store(tmp_path, source, plan)


def damage(folder: Path, how: str) -> None:
    """Damage the only shard of a cache, or its index."""
    index = next(file for file in folder.glob("*.json") if file.name != "about.json")
    shard = index.with_suffix(".npy")
    whole = shard.read_bytes()
    if how == "cut":
        shard.write_bytes(whole[: len(whole) // 2])
    elif how == "longer":
        shard.write_bytes(whole + b"more")
    elif how == "empty":
        shard.write_bytes(b"")
    elif how == "gone":
        shard.unlink()
    elif how == "zeros":
        shard.write_bytes(whole[:-64] + bytes(64))
    elif how == "text":
        shard.write_text("no features\n" * 99)
    elif how == "another shape":
        shard.write_bytes(whole.replace(b"(8, ", b"(4, ", 1))
    elif how == "objects":
        np.save(shard, np.array([[["x"]]], object), allow_pickle=True)
    elif how == "another count":
        found = json.loads(index.read_text())
        found["clips"][0][1] -= 1
        index.write_text(json.dumps(found))
    else:
        index.write_text(how)


@pytest.mark.parametrize(
    "how",
    [
        *(
            "cut",
            "longer",
            "empty",
            "gone",
            "zeros",
            "text",
            "another shape",
            "objects",
            "another count",
        ),
        *("", "{", "[]", "3", '{"clips": 3}', '{"clips": [["a", "b"]], "checksum": ""}'),
        *("[" * 100_000, '[["old format", 2]]', '{"clips": []}'),
    ],
)
def test_a_damaged_shard_or_index_is_computed_again(tmp_path, manifest, how):
    source, plan = Counting(), WindowPlan(1.0, False)
    clips = clips_of(manifest)
    store = open_store(tmp_path, source, plan)
    fill(store, source, plan, clips)
    expected = [np.array(store.vectors(clip.key)) for clip in clips]
    computed = source.windows
    damage(store.folder, how)
    again = open_store(tmp_path, source, plan)
    assert clips[0].key not in again
    fill(again, source, plan, clips)
    assert source.windows == 2 * computed
    for clip, vectors in zip(clips, expected, strict=True):
        np.testing.assert_array_equal(again.vectors(clip.key), vectors)
    assert len(list(store.folder.iterdir())) == 3  # nothing of the damaged one is left
    last = open_store(tmp_path, source, plan)
    fill(last, source, plan, clips)
    assert source.windows == 2 * computed


def test_a_full_disk_is_one_line_and_what_is_there_stays(tmp_path, manifest):
    source, plan = Counting(), WindowPlan(1.0, True)
    clips = clips_of(manifest)
    store = open_store(tmp_path, source, plan)
    fill(store, source, plan, clips[:1])
    before = sorted(store.folder.iterdir())
    with (
        full_disk(1_000),
        pytest.raises(InputError, match=r"make room, or name a folder elsewhere") as full,
    ):
        fill(open_store(tmp_path, source, plan), source, plan, clips)
    assert str(full.value).startswith(f"{store.folder}: ")
    assert "\n" not in str(full.value)
    assert sorted(store.folder.iterdir()) == before
    again = open_store(tmp_path, source, plan)
    computed = source.windows
    fill(again, source, plan, clips[:1])
    assert source.windows == computed


def test_a_folder_that_cannot_be_written_is_named_at_the_first_clip(tmp_path):
    (tmp_path / "file").touch()
    cache = FeatureCache(tmp_path / "file" / "cache", {}, 2**30)
    with pytest.raises(InputError, match="Not a directory; give --cache"):
        cache.add("key", np.zeros((1, 1, 4), np.float32))


def test_what_another_process_throws_away_stays_readable(tmp_path, manifest):
    source, plan = Counting(), WindowPlan(1.0, False)
    clips = clips_of(manifest)
    store = open_store(tmp_path, source, plan)
    fill(store, source, plan, clips)
    store = open_store(tmp_path, source, plan)
    assert clips[0].key in store
    expected = np.array(store.vectors(clips[0].key))
    for file in store.folder.iterdir():
        file.unlink()
    np.testing.assert_array_equal(store.vectors(clips[0].key), expected)
    assert clips[0].key not in open_store(tmp_path, source, plan)


def test_the_cache_is_bounded(tmp_path, manifest):
    source, plan = Counting(), WindowPlan(1.0, False)
    clips = clips_of(manifest)
    vector = 2 * 3 * 4
    old = open_store(tmp_path, source, plan)
    fill(old, source, plan, clips[:1])
    whole = sum(file.stat().st_size for file in old.root.rglob("*.npy"))
    store = open_store(tmp_path, source, plan, limit=whole + vector)
    store.use(clip.key for clip in clips[1:2])
    fill(store, source, plan, clips[1:2])  # three vectors: only without the others
    assert clips[0].key not in open_store(tmp_path, source, plan)
    assert clips[1].key in open_store(tmp_path, source, plan)
    small = open_store(tmp_path, source, plan, limit=vector)
    with pytest.raises(InputError, match=r"the cache may hold 0\.00 GB: set task\.cache_limit_gb"):
        fill(small, source, plan, clips)


def test_front_ends_are_one_layer_of_means_and_deviations():
    waveforms = np.random.default_rng(0).standard_normal((2, SAMPLE_RATE)).astype(np.float32)
    source = open_source("mfcc")
    features = source.clip_features(waveforms)
    assert features.shape == (2, 1, 78)
    frames = source.frame_features(waveforms, 49)
    assert frames.shape == (2, 49, 1, 39)
    np.testing.assert_allclose(features[0, 0, :39], frames[0, :, 0].mean(0), atol=0.5)
    assert open_source("chroma").fingerprint != source.fingerprint
