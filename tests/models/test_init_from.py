"""`model.init_from`: pre-training that starts from another checkpoint's encoder."""

import logging

import pytest
import torch

from music_ssl_fairseq.errors import InputError
from music_ssl_fairseq.upstream import load, read
from music_ssl_fairseq.upstream.build import initialise
from music_ssl_fairseq.upstream.contents import PREFIXES
from tests import checkpoints, tiny
from tests.fairseq_commands import SHALLOW, TINY, train, validate

SHAPES = {
    "hubert": {"conv_pos": 128, "pos_conv_depth": 1, "extractor_mode": "default"},
    "wav2vec2": {"conv_pos": 128, "pos_conv_depth": 1, "extractor_mode": "default"},
    "music_hubert": {"conv_pos": 128, "pos_conv_depth": 1, "extractor_mode": "default"},
    "data2vec_audio": {"conv_pos": 95, "pos_conv_depth": 5, "extractor_mode": "layer_norm"},
    "music2vec": {"conv_pos": 95, "pos_conv_depth": 5, "extractor_mode": "layer_norm"},
}


@pytest.mark.parametrize("target", ["music_hubert", "music2vec"])
@pytest.mark.parametrize("source", SHAPES)
def test_encoders_are_taken_over_and_heads_are_new(tmp_path, source, target):
    torch.manual_seed(1)
    path = checkpoints.write(tmp_path / "x.pt", source, checkpoints.MODELS[source]())
    torch.manual_seed(2)
    model = checkpoints.MODELS[target](**SHAPES[source])
    heads = {
        name: tensor.clone()
        for name, tensor in model.state_dict().items()
        if not name.startswith((*PREFIXES, "mask_emb"))
    }
    initialise(model, read(path), normalise=False)
    upstream = load(path)
    waveform = torch.randn(1, 8_000)
    for ours, wanted in zip(model.layers(waveform), upstream.layers(waveform), strict=True):
        torch.testing.assert_close(ours, wanted, rtol=1e-4, atol=1e-5)
    assert torch.equal(model.mask_emb, upstream.model.mask_emb)
    assert heads
    for name, tensor in heads.items():
        assert torch.equal(model.state_dict()[name], tensor)


def test_another_shape_names_the_settings_that_fit(tmp_path):
    path = checkpoints.write(tmp_path / "x.pt", "hubert", tiny.fairseq_hubert(conv_bias=True))
    with pytest.raises(InputError) as error:
        initialise(tiny.music2vec(encoder_layers=4), read(path), normalise=False)
    for setting in (
        "model.extractor_mode=default",
        "model.conv_bias=true",
        "model.encoder_layers=3",
        "model.conv_pos=128",
        "model.pos_conv_depth=1",
    ):
        assert setting in str(error.value)
    assert "conv_feature_layers" not in str(error.value)
    assert "\n" not in str(error.value)


def test_another_normalisation_is_logged(tmp_path, caplog):
    path = checkpoints.write(tmp_path / "x.pt", "hubert", tiny.fairseq_hubert(), normalize=True)
    with caplog.at_level(logging.WARNING):
        initialise(tiny.music_hubert(), read(path), normalise=False)
    assert "task.normalize=true" in caplog.text


def test_another_sample_rate_is_refused(tmp_path):
    path = checkpoints.write(tmp_path / "x.pt", "hubert", tiny.fairseq_hubert())
    checkpoint = torch.load(path)
    checkpoint["cfg"]["task"]["sample_rate"] = 24_000
    torch.save(checkpoint, path)
    with pytest.raises(InputError, match=r"x\.pt: was trained at 24000 Hz"):
        initialise(tiny.music_hubert(), read(path), normalise=False)


def test_training_starts_from_it_and_the_result_does_without(corpus, tmp_path, monkeypatch, capsys):
    """As a user types it; then the file goes, and validation and continuing still work."""
    monkeypatch.chdir(corpus)
    stock = checkpoints.write(
        tmp_path / "stock.pt", "hubert", tiny.fairseq_hubert(encoder_layers=2)
    )
    settings = (
        *SHALLOW["music_hubert"],
        f"hydra.run.dir={tmp_path}/run",
        "optimization.lr=[1e-9]",
        "lr_scheduler.warmup_updates=1",
    )
    train("music_hubert", *settings, f"model.init_from={stock}", "optimization.max_update=2")
    trained = load(tmp_path / "run" / "checkpoints" / "checkpoint_last.pt").model.state_dict()
    for name, tensor in load(stock).model.state_dict().items():
        torch.testing.assert_close(trained[name], tensor, rtol=1e-4, atol=1e-5)
    stock.unlink()
    last = tmp_path / "run" / "checkpoints" / "checkpoint_last.pt"
    validate(last, corpus / "manifests", "music_hubert_pretraining")
    train(
        "music_hubert",
        *settings,
        f"checkpoint.finetune_from_model={last}",
        f"checkpoint.save_dir={tmp_path}/second",
        "optimization.max_update=1",
    )
    second = load(tmp_path / "second" / "checkpoint_last.pt").model.state_dict()
    for name, tensor in trained.items():
        torch.testing.assert_close(second[name], tensor, rtol=1e-4, atol=1e-5)


def test_a_checkpoint_that_does_not_fit_ends_training_in_one_line(corpus, tmp_path, monkeypatch):
    monkeypatch.chdir(corpus)
    path = checkpoints.write(tmp_path / "x.pt", "music2vec", tiny.music2vec())
    with pytest.raises(SystemExit) as end:
        train("music_hubert", *TINY, f"hydra.run.dir={tmp_path}/run", f"model.init_from={path}")
    assert "model.pos_conv_depth=5" in str(end.value)
