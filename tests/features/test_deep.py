"""A model's layer as features: every family, any part of a track, any company in a batch."""

from itertools import pairwise

import numpy as np
import pytest
import torch

from music_ssl_fairseq import audio
from music_ssl_fairseq.errors import InputError
from music_ssl_fairseq.features import FeatureSpec, front_end
from music_ssl_fairseq.features.chunk_features import Track, read_chunk
from music_ssl_fairseq.features.deep import Deep
from music_ssl_fairseq.upstream import load
from music_ssl_fairseq.upstream.windows import Windowing
from tests import checkpoints
from tests.audio_files import tone, write_tone
from tests.features.track_features import track_features

SHORT = Windowing(seconds=8, overlap=4, whole=10)
SECTIONS = Windowing(seconds=8, overlap=4, whole=10, section=18)


def write(folder, family="music_hubert", **fields) -> str:
    model = checkpoints.MODELS[family](**fields)
    return str(checkpoints.write(folder / f"{family}.pt", family, model))


@pytest.mark.parametrize("family", checkpoints.MODELS)
@pytest.mark.parametrize("layer", [0, 2, 3])
def test_is_that_layer_of_the_model(tmp_path, family, layer):
    path = write(tmp_path, family)
    front = front_end(FeatureSpec("deep", path, layer))
    waveform = tone(1.3)[:, 0]
    frames = front.features(waveform)
    upstream = load(path)
    expected = upstream.layers(torch.from_numpy(waveform)[None])[layer][0].numpy()
    np.testing.assert_allclose(frames, expected, atol=1e-5)
    assert frames.dtype == np.float32
    assert front.fingerprint == upstream.fingerprint
    assert (front.grid.rate, front.dimension) == (50, 32)
    assert (front.grid.window, front.grid.hop) == (400, 320)


def test_too_little_audio_has_no_frames(tmp_path):
    front = Deep(write(tmp_path), 1)
    assert front.features(np.zeros(399, np.float32)).shape == (0, 32)


def test_what_there_is_not(tmp_path):
    path = write(tmp_path)
    with pytest.raises(InputError, match=r"music_hubert\.pt: has no layer 4, only 0 .* to 3"):
        front_end(FeatureSpec("deep", path, 4))
    with pytest.raises(InputError, match=r"gone\.pt"):
        front_end(FeatureSpec("deep", str(tmp_path / "gone.pt"), 1))


@pytest.fixture(scope="module")
def long_track(tmp_path_factory) -> Track:
    path = write_tone(tmp_path_factory.mktemp("music") / "long.flac", 27.3)
    return Track(str(path), len(audio.read(path)))


def test_any_part_of_a_track_is_that_of_the_whole(tmp_path, long_track):
    front = Deep(write(tmp_path), 3, windowing=SECTIONS)
    whole = front.features(audio.read(long_track.path))
    bounds = [0, 1, 130, 500, 501, 900, len(whole)]
    parts = [track_features(front, long_track, *part) for part in pairwise(bounds)]
    np.testing.assert_allclose(np.concatenate(parts), whole, atol=1e-5)


def test_only_the_section_that_a_part_needs_is_read(tmp_path, long_track):
    front = Deep(write(tmp_path), 3, windowing=SECTIONS)
    chunk = read_chunk(front, long_track, 50, 60)
    assert len(chunk.waveform) <= 18 * 16000


def test_batches_change_nothing(tmp_path, long_track):
    path = write(tmp_path)
    one, many = Deep(path, 3, windowing=SECTIONS), Deep(path, 3, windowing=SECTIONS)
    many._batch = 3
    short = write_tone(tmp_path / "short.flac", 2.5)
    tracks = [long_track, Track(str(short), 40_000), long_track]
    wanted = [(0, 700), (3, 90), (1000, 1200)]
    chunks = [read_chunk(one, t, *part) for t, part in zip(tracks, wanted, strict=True)]
    together = many.features_of(chunks)
    for i, chunk in enumerate(chunks):
        (alone,) = one.features_of([chunk])
        np.testing.assert_allclose(together[i], alone, atol=1e-5)
        np.testing.assert_array_equal(many.features_of([chunk])[0], together[i])


def test_seams_do_not_show(tmp_path):
    # 20 s in windows of 8 s, against the same 20 s at once. The control: windows that do not
    # overlap, so that the model never has their first and last frames beside their neighbours.
    path = write(tmp_path)
    waveform = tone(20, seed=1)[:, 0]
    whole = Deep(path, 3, windowing=Windowing(20, 4, 20)).features(waveform)
    front = Deep(path, 3, windowing=SHORT)
    cut = np.zeros_like(whole)
    for first in (0, 400, 800):
        block = front.features(waveform[first * 320 :][: 8 * 16_000 + 80])
        cut[first : first + len(block)] = block

    def errors(frames):
        return np.square(frames - whole).sum(axis=1) / np.square(whole).sum(axis=1).mean()

    windowed = errors(front.features(waveform))
    at_cuts = errors(cut)[[*range(392, 408), *range(792, 808)]]
    assert windowed.max() < 1e-3
    assert at_cuts.mean() > 0.05


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("family", checkpoints.MODELS)
def test_a_gpu_computes_the_same_whatever_shares_a_batch(tmp_path, long_track, family):
    path = write(tmp_path, family)
    cpu, gpu = Deep(path, 3, windowing=SECTIONS), Deep(path, 3, "cuda", SECTIONS)
    waveform = audio.read(long_track.path)
    expected = cpu.features(waveform)
    found = gpu.features(waveform)
    assert np.square(found - expected).mean() < 1e-3 * np.square(expected).mean()  # bf16
    chunks = [read_chunk(gpu, long_track, *part) for part in pairwise([0, 300, 700, 1000])]
    together = gpu.features_of(chunks)
    for chunk, frames in zip(chunks, together, strict=True):
        np.testing.assert_array_equal(gpu.features_of([chunk])[0], frames)
