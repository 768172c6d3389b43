"""An encoder is a module like any other, and takes audio in the forms in which users have it."""

import copy
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import music_ssl_fairseq
from music_ssl_fairseq import audio
from music_ssl_fairseq.errors import InputError
from music_ssl_fairseq.upstream.windows import Windowing
from tests import checkpoints, tiny
from tests.audio_files import tone, write_tone


@pytest.fixture
def path(tmp_path) -> Path:
    torch.manual_seed(0)
    return checkpoints.write(tmp_path / "x.pt", "music_hubert", tiny.music_hubert())


@pytest.fixture
def model(path):
    return music_ssl_fairseq.load(path)


def test_it_moves_and_says_what_it_is(path, model):
    assert isinstance(model, torch.nn.Module)
    assert model.to("cpu").eval() is model
    assert not model.training
    count = sum(p.numel() for p in model.parameters())
    assert count > 1_000
    assert repr(model) == (
        f"Upstream(music_hubert, 3 layers of 32, 50 frames/s, {count / 1e6:.1f} M parameters, "
        f"fp32 on cpu, from {path})"
    )
    assert model.to("meta").device.type == "meta"


def test_printing_a_model_changes_no_setting_of_torch(model, monkeypatch):
    monkeypatch.setattr(type(model), "device", torch.device("cuda"))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    settings = SimpleNamespace(allow_tf32=False)
    monkeypatch.setattr(torch.backends.cuda, "matmul", settings)
    assert "bf16 on cuda" in repr(model)
    assert not settings.allow_tf32
    with model.model.autocast(model.device):  # here computing begins
        assert settings.allow_tf32


def test_a_copy_with_the_same_state_is_the_same(path, model):
    other = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.zero_()
    other.load_state_dict(model.state_dict())
    source = torch.randn(2, 8_000)
    assert torch.equal(other(source), model(source))


def test_forward_is_the_last_layer(model):
    source = torch.randn(2, 8_000)
    torch.testing.assert_close(model(source), model.layers(source)[-1], rtol=1e-4, atol=1e-5)
    assert not model(source).requires_grad


@pytest.mark.parametrize("padded", [False, True])
def test_forward_has_gradients_once_they_are_asked_for(model, padded):
    padding = torch.arange(8_000) >= torch.tensor([[8_000], [5_000]])
    model.train().requires_grad_()
    model(torch.randn(2, 8_000), padding if padded else None).square().sum().backward()
    # DistributedDataParallel refuses parameters without gradients.
    trained = {n: p.grad for n, p in model.named_parameters() if p.requires_grad}
    assert {n for n, _ in model.named_parameters()} - set(trained) == {"model.mask_emb"}
    # A softmax over keys cancels a bias of them.
    assert all(grad.any() for n, grad in trained.items() if "k_proj.bias" not in n)
    assert not model.layers(torch.randn(2, 8_000))[-1].requires_grad
    assert model.training


def test_channels_are_averaged_where_the_caller_says_they_are(tmp_path, model):
    stereo = tone(1.0, channels=2)
    mixed = model.features(stereo.mean(1), 16_000).layers
    assert torch.equal(model.features(stereo, 16_000, channels="last").layers, mixed)
    first = torch.from_numpy(stereo.T.copy())
    assert torch.equal(model.features(first, 16_000, channels="first").layers, mixed)
    # One channel is one channel, either way.
    one = model.features(stereo[:, 0], 16_000).layers
    for shape in ((1, -1), (-1, 1)):
        assert torch.equal(model.features(stereo[:, 0].reshape(shape), 16_000).layers, one)


def test_a_list_of_clips_of_any_kind_and_length(tmp_path, model):
    path = write_tone(tmp_path / "song.flac", 1.5, 44_100)
    clips = [str(path), Path(path), tone(1.0)[:, 0], torch.from_numpy(tone(0.5, channels=2).T)]
    found = model.features(clips, 16_000, [-1], channels="first")
    assert [f.layers.size(1) for f in found] == [74, 74, 49, 24]
    for clip, features in zip(clips, found, strict=True):
        alone = model.features(clip, 16_000, [-1], channels="first")
        assert torch.equal(features.layers, alone.layers)
    read = model.features(audio.read(path), 16_000, -1)
    assert torch.equal(found[0].layers, read.layers)
    assert model.features([]) == []


def test_torchs_defaults_in_a_program_change_nothing(path, model):
    waveform = tone(1.0)[:, 0]
    expected = model.features(waveform, 16_000).layers, model.embed(waveform, 16_000)
    drawn = music_ssl_fairseq.upstream.random(path, 3).fingerprint
    torch.set_default_dtype(torch.float64)
    try:
        with torch.device("meta"):  # as torch.set_default_device("cuda")
            loaded = music_ssl_fairseq.load(path)
            found = loaded.features(waveform, 16_000)
            vector = loaded.embed(waveform, 16_000)
            assert music_ssl_fairseq.upstream.random(path, 3).fingerprint == drawn
    finally:
        torch.set_default_dtype(torch.float32)
    assert found.layers.dtype == torch.float32
    assert torch.equal(found.layers, expected[0])
    assert found.times.device.type == "cpu"
    np.testing.assert_array_equal(vector, expected[1])


def test_embeddings_are_means_of_songs(tmp_path, model):
    paths = [write_tone(tmp_path / f"{i}.wav", seconds) for i, seconds in enumerate((1.0, 20.0))]
    windowing = Windowing(seconds=8.0, whole=8.0)
    vectors = model.embed(paths, windowing=windowing)
    assert vectors.shape == (2, 32)
    assert vectors.dtype == np.float32
    for vector, path in zip(vectors, paths, strict=True):
        expected = model.features(path, windowing=windowing).mean()
        np.testing.assert_allclose(vector, expected[1:].mean(0), rtol=1e-4, atol=1e-5)
        (one,) = model.embed(str(path), layers=-1, windowing=windowing)
        np.testing.assert_allclose(one, expected[-1], rtol=1e-4, atol=1e-5)


def test_a_missing_song_is_named_before_anything_is_computed(tmp_path, model, monkeypatch):
    song = write_tone(tmp_path / "x.wav", 1.0)
    monkeypatch.setattr(type(model), "raw_layers", None)
    missing = [tmp_path / "none.wav", tmp_path / "nor_this.wav"]
    reason = r"none\.wav: no such file; 1 more cannot be read: .*nor_this\.wav"
    with pytest.raises(InputError, match=reason):
        model.embed([song, *missing])
    with pytest.raises(InputError, match=reason):  # as Path.glob and tables give names
        model.embed(path for path in missing)
    with pytest.raises(InputError, match=reason):
        model.embed(np.array([str(path) for path in missing]))


def test_a_name_on_the_hub_needs_its_package(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(InputError, match=r"huggingface_hub is not installed; .*\[hub\]'"):
        music_ssl_fairseq.load("hf:someone/model")


def run_folder(folder: Path, path: Path, *names: str) -> Path:
    (folder / "checkpoints").mkdir(parents=True)
    for name in names:
        (folder / "checkpoints" / f"checkpoint_{name}.pt").write_bytes(path.read_bytes())
    return folder


@pytest.mark.parametrize("names", [("best", "last"), ("last",)])
def test_a_run_folder_stands_for_its_checkpoint(tmp_path, path, names):
    run = run_folder(tmp_path / "runs" / "model" / "config", path, *names)
    wanted = run / "checkpoints" / f"checkpoint_{names[0]}.pt"
    for place in (run, run / "checkpoints", tmp_path / "runs" / "model", tmp_path / "runs"):
        assert music_ssl_fairseq.load(place).path == str(wanted)


def test_a_folder_of_several_runs_names_them(tmp_path, path):
    for name in ("one", "two"):
        run_folder(tmp_path / "runs" / name, path, "last")
    with pytest.raises(InputError, match=r"runs: holds several runs: .*one, .*two; give one"):
        music_ssl_fairseq.load(tmp_path / "runs")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"neither .*config\.json .* nor .*checkpoint_best\.pt"):
        music_ssl_fairseq.load(tmp_path / "empty")
