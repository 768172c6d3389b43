"""Checkpoints of every family, form and age come out as fairseq's own classes compute them."""

import argparse
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F

import music_ssl_fairseq
from music_ssl_fairseq.errors import InputError
from music_ssl_fairseq.upstream import load, random
from tests import checkpoints, tiny

STOCK = ("hubert", "data2vec_audio", "wav2vec2")
LARGE = {"layer_norm_first": True, "extractor_mode": "layer_norm", "conv_bias": True}


def hidden_states(model, source, padding=None) -> list[torch.Tensor]:
    """Every layer of a stock model as its own forward pass computes it, `[B, frames, D]`."""
    found = []
    projection = model.post_extract_proj or model.layer_norm
    hooks = [projection.register_forward_hook(lambda *call: found.append(call[2]))]
    for layer in model.encoder.layers:
        hook = layer.register_forward_hook(lambda *call: found.append(call[2][0].transpose(0, 1)))
        hooks.append(hook)
    model.eval()
    with torch.no_grad():
        model(source, padding_mask=padding, mask=False, features_only=True)
    for hook in hooks:
        hook.remove()
    # fairseq pads the encoder's input to an even number of frames.
    return [x[:, : found[0].size(1)] for x in found]


def pair(tmp_path, family: str, normalize: bool = False, form: str = "dict", **fields):
    theirs = checkpoints.MODELS[family](**fields)
    path = checkpoints.write(tmp_path / "stock.pt", family, theirs, normalize, form)
    return load(path), theirs


@pytest.mark.parametrize("samples", [15_760, 16_080])  # 49 and 50 frames: fairseq pads the odd one
@pytest.mark.parametrize("fields", [{}, LARGE], ids=["base", "large"])
@pytest.mark.parametrize("family", STOCK)
def test_layers_equal_fairseqs(tmp_path, family, fields, samples):
    ours, theirs = pair(tmp_path, family, **fields)
    source = torch.randn(2, samples)
    expected = hidden_states(theirs, source)
    layers = ours.layers(source)
    assert len(layers) == len(expected) == ours.num_layers + 1 == 4
    for layer, wanted in zip(layers, expected, strict=True):
        torch.testing.assert_close(layer, wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("fields", [{}, LARGE], ids=["base", "large"])
@pytest.mark.parametrize("family", STOCK)
def test_padded_layers_equal_fairseqs(tmp_path, family, fields):
    ours, theirs = pair(tmp_path, family, **fields)
    source = torch.randn(2, 16_000)
    padding = torch.zeros(2, 16_000, dtype=torch.bool)
    # A length for which fairseq's HuBERT counts 29 real frames, as all others do: it divides the
    # batch's samples by its frames and keeps what is partly padding.
    padding[1, 9_400:] = True
    source[padding] = 0
    expected = hidden_states(theirs, source, padding)
    for layer, wanted in zip(ours.model.layers(source, padding), expected, strict=True):
        torch.testing.assert_close(layer[0], wanted[0], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(layer[1, :29], wanted[1, :29], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("fields", [{}, LARGE], ids=["base", "large"])
@pytest.mark.parametrize("family", checkpoints.MODELS)
def test_a_padded_waveform_has_the_features_that_it_has_alone(tmp_path, family, fields, normalize):
    """Whatever norms and positional convolutions a model has, and whatever the padding holds."""
    ours, _ = pair(tmp_path, family, normalize, **fields)
    lengths = (16_000, 9_400, 5_555, 9_400)
    waveforms = [0.3 * torch.randn(length) + 0.1 for length in lengths]
    padded = torch.stack([F.pad(x, (0, 16_000 - len(x)), value=0.5) for x in waveforms])
    padding = torch.arange(16_000) >= torch.tensor(lengths)[:, None]
    for number, together in enumerate(ours.layers(padded, padding)):
        for row, waveform in zip(together, waveforms, strict=True):
            alone = ours.layers(waveform[None])[number][0]
            torch.testing.assert_close(row[: len(alone)], alone, rtol=1e-4, atol=1e-5)
            assert not row[len(alone) :].any()


@pytest.mark.parametrize(
    ("padding", "message"),
    [
        (torch.arange(8_000)[None] < 100, "pad on the right"),
        (torch.zeros(2, 8_000, dtype=torch.bool), r"of the waveform's shape \(1, 8000\)"),
        (torch.zeros(1, 8_000), "is torch.float32"),
        (torch.arange(8_000)[None] >= 300, "0.019 s of audio is less than one frame"),
    ],
)
def test_a_mask_that_is_none_is_refused(tmp_path, padding, message):
    ours, _ = pair(tmp_path, "hubert")
    with pytest.raises(InputError, match=message):
        ours.layers(torch.randn(1, 8_000), padding)
    with pytest.raises(InputError, match=r"expected .B, T., B from 1 on"):
        ours.layers(torch.zeros(0, 8_000))


@pytest.mark.parametrize("family", STOCK)
def test_waveforms_are_normalised_as_in_training(tmp_path, family):
    ours, theirs = pair(tmp_path, family, normalize=True)
    source = 0.01 * torch.randn(2, 8_000) + 0.3
    expected = hidden_states(theirs, torch.stack([F.layer_norm(x, x.shape) for x in source]))
    torch.testing.assert_close(ours.layers(source)[-1], expected[-1], rtol=1e-4, atol=1e-5)
    assert ours.normalise


@pytest.mark.parametrize("form", ["dict", "omegaconf", "namespace"])
@pytest.mark.parametrize("family", checkpoints.MODELS)
def test_every_form_and_age_gives_the_same_model(tmp_path, family, form):
    torch.manual_seed(3)
    model = checkpoints.MODELS[family](**LARGE)
    if family in ("music2vec", "data2vec_audio"):
        model.set_num_updates(0)  # makes the teacher
        assert "_ema" in model.state_dict() or family == "data2vec_audio"
    path = checkpoints.write(tmp_path / "x.pt", family, model, True, form)
    upstream = load(path)
    assert (upstream.family, upstream.normalise, upstream.sample_rate) == (family, True, 16000)
    assert (upstream.dimension, upstream.frame_rate) == (32, 50)
    assert upstream.config["layer_norm_first"] is True
    for name, tensor in upstream.model.state_dict().items():
        assert torch.equal(tensor, model.state_dict()[name]), name


@pytest.mark.parametrize("form", ["dict", "namespace"])
def test_a_folder_whose_name_is_not_utf8(tmp_path, form):
    known, _ = pair(tmp_path, "hubert", form=form)
    folder = tmp_path / os.fsdecode(b"\xe9")
    folder.mkdir()
    assert load((tmp_path / "stock.pt").rename(folder / "x.pt")).fingerprint == known.fingerprint


def test_our_layers_are_those_of_the_trained_model(tmp_path):
    for family in ("music_hubert", "music2vec"):
        model = checkpoints.MODELS[family]()
        upstream = load(checkpoints.write(tmp_path / "x.pt", family, model))
        source = torch.randn(1, 8_000)
        for ours, wanted in zip(upstream.layers(source), model.layers(source), strict=True):
            torch.testing.assert_close(ours, wanted, rtol=1e-4, atol=1e-5)


def test_old_files_and_what_trainers_add(tmp_path):
    """torch's format before 1.6, half precision, numpy numbers, names of newer weight norms."""
    model = checkpoints.MODELS["wav2vec2"]()
    path = checkpoints.write(tmp_path / "old.pt", "wav2vec2", model, form="namespace")
    checkpoint = torch.load(path, weights_only=False)
    state = checkpoint["model"]
    expected = load(path)
    for old, new in (("weight_g", "original0"), ("weight_v", "original1")):
        tensor = state.pop(f"encoder.pos_conv.0.{old}")
        state[f"encoder.pos_conv.0.parametrizations.weight.{new}"] = tensor
    checkpoint["extra_state"] = {"val_loss": np.float64(1.5), "best": np.float32(2)}
    checkpoint["task_state"] = {"dictionaries": [tiny.dictionary(5)]}  # as HuBERT's has
    checkpoint["optimizer_history"] = [{"lr": np.int64(3)}]
    torch.save(checkpoint, path, _use_new_zipfile_serialization=False)
    assert load(path).fingerprint == expected.fingerprint
    checkpoint["model"] = {name: tensor.half() for name, tensor in state.items()}
    torch.save(checkpoint, path)
    assert load(path).model.mask_emb.dtype == torch.float32


def test_no_projection_where_extractor_and_encoder_are_equally_wide(tmp_path):
    same = {"conv_feature_layers": "[(32,10,5)] + [(32,3,2)] * 4 + [(32,2,2)] * 2"}
    ours, theirs = pair(tmp_path, "hubert", **same)
    assert theirs.post_extract_proj is None
    source = torch.randn(1, 8_000)
    for layer, wanted in zip(ours.layers(source), hidden_states(theirs, source), strict=True):
        torch.testing.assert_close(layer, wanted, rtol=1e-4, atol=1e-5)


def test_fingerprints_tell_models_apart(tmp_path):
    def written(name: str, **options) -> str:
        torch.manual_seed(0)
        model = tiny.music_hubert(**options.pop("fields", {}))
        return load(
            checkpoints.write(tmp_path / name, "music_hubert", model, **options)
        ).fingerprint

    first = written("a.pt")
    assert first == written("b.pt", form="omegaconf")
    assert first != written("c.pt", normalize=True)
    assert first != written("d.pt", fields={"layer_norm_first": True})


def test_random_weights_follow_from_the_seed(tmp_path):
    path = checkpoints.write(tmp_path / "x.pt", "music2vec", tiny.music2vec(), normalize=True)
    state = torch.get_rng_state()
    one, same, other = (random(path, seed) for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), state)
    assert one.fingerprint == same.fingerprint != other.fingerprint
    assert one.fingerprint != load(path).fingerprint
    assert (one.config, one.normalise, one.family) == (load(path).config, True, "music2vec")


def test_weights_are_frozen_and_loading_leaves_the_generator_alone(tmp_path):
    path = checkpoints.write(
        tmp_path / "x.pt", "music_hubert", tiny.music_hubert(encoder_layerdrop=0.5)
    )
    state = torch.get_rng_state()
    upstream = music_ssl_fairseq.load(path)
    assert torch.equal(torch.get_rng_state(), state)
    assert not upstream.model.training
    assert not any(p.requires_grad for p in upstream.model.parameters())


@pytest.mark.parametrize("way", ["zip", "legacy", "pickle"])
def test_a_checkpoint_that_wants_to_run_code_is_refused(tmp_path, way):
    path, trace = tmp_path / "evil.pt", tmp_path / "trace"
    evil = {"model": tiny.music_hubert().state_dict(), "cfg": checkpoints.Attack(f"touch {trace}")}
    if way == "pickle":
        path.write_bytes(pickle.dumps(evil))
    else:
        torch.save(evil, path, _use_new_zipfile_serialization=way == "zip")
    with pytest.raises(InputError, match=r"evil\.pt: refused, because .* could run code") as error:
        load(path)
    assert "\n" not in str(error.value)
    assert not trace.exists()


def damaged(path: Path, how: str) -> Path:
    if how == "text":
        path.write_text("epoch\tloss\n1\t8.84\n")
    elif how == "empty":
        path.write_bytes(b"")
    elif how == "lfs":
        path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\n")
    elif how == "noise":
        path.write_bytes(bytes(range(256)))
    else:
        whole = path.read_bytes()
        path.write_bytes(whole[: len(whole) * 2 // 3])
    return path


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("text", "not a checkpoint; it is text that begins with 'epoch"),
        ("empty", "the file is empty"),
        ("lfs", "git lfs pull"),
        ("noise", "torch did not write it"),
        ("truncated", "truncated or damaged"),
    ],
)
def test_what_is_no_checkpoint_is_named(tmp_path, how, message):
    path = checkpoints.write(tmp_path / "x.pt", "music_hubert", tiny.music_hubert())
    with pytest.raises(InputError, match=message) as error:
        load(damaged(path, how))
    assert str(error.value).startswith(str(path))


def test_a_changed_bit_of_a_weight_or_a_setting_is_found(tmp_path):
    model = tiny.music_hubert()
    state = {"exp_avg": torch.arange(500.0)}
    path = checkpoints.write(tmp_path / "x.pt", "music_hubert", model, last_optimizer_state=state)
    whole = path.read_bytes()
    weight = model.state_dict()["encoder.layers.0.fc1.weight"].numpy().tobytes()
    for part in (weight, b"sample_rate", state["exp_avg"].numpy().tobytes()):
        content = bytearray(whole)
        content[whole.index(part) + 8] ^= 1
        path.write_bytes(content)
        if part[:4] == bytes(4):  # no part of the model
            load(path)
            continue
        with pytest.raises(InputError, match=r"x\.pt: damaged: 1 of its \d+ parts"):
            load(path)


def test_a_truncated_old_file_is_named(tmp_path):
    path = tmp_path / "x.pt"
    torch.save(
        {"model": tiny.music_hubert().state_dict()}, path, _use_new_zipfile_serialization=False
    )
    with pytest.raises(InputError, match="truncated or damaged"):
        load(damaged(path, "truncated"))


def test_weights_that_are_not_finite_are_refused(tmp_path):
    model = tiny.music_hubert()
    with torch.no_grad():
        model.encoder.layers[1].fc1.bias[3] = torch.nan
    path = checkpoints.write(tmp_path / "x.pt", "music_hubert", model)
    with pytest.raises(InputError, match=r"encoder\.layers\.1\.fc1\.bias has values that are NaN"):
        load(path)


def test_no_such_file(tmp_path):
    with pytest.raises(InputError, match="no such checkpoint"):
        load(tmp_path / "none.pt")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"_name": "wav2vec_ctc"}, "give the checkpoint it was fine-tuned from"),
        ({"_name": "transformer_lm"}, "'transformer_lm', another architecture"),
        ({"layer_type": "conformer"}, "its layers are conformer"),
        ({"activation_fn": "relu"}, "its activation is relu"),
        ({"encoder_layers": 4}, "lacks encoder.layers.3"),
        ({"encoder_layers": 2}, "has no place for encoder.layers.2"),
        ({"encoder_ffn_embed_dim": 48}, "instead of"),
        ({"conv_feature_layers": "__import__('os').system('true')"}, "conv_feature_layers"),
        ({"encoder_layers": "many"}, "encoder_layers is 'many'"),
        ({"encoder_layers": 10**7}, "a model with 10000000 layers"),
        ({"encoder_embed_dim": 10**6}, "but it holds"),
        ({"encoder_ffn_embed_dim": 10**9}, "but it holds"),
        ({"conv_pos": 10**9}, "but it holds"),
        ({"conv_pos_groups": 0}, "which no encoder can have"),
        ({"encoder_attention_heads": float("nan")}, "which no encoder can have"),
        ({"conv_bias": torch.ones(3)}, "its settings are damaged"),
        ({"extractor_mode": "x"}, "extractor_mode is 'x', which no encoder can have"),
        ({"_name": torch.ones(3)}, "its settings are damaged"),
        ({"encoder_attention_heads": 5}, "no encoder can have its settings"),
        ({"encoder_embed_dim": -32}, "which no encoder can have"),
        ({"conv_feature_layers": "[(512,10,5)] * 100000"}, "conv_feature_layers"),
        ({"conv_feature_layers": "[(512,10,5)] * 10**10"}, "conv_feature_layers"),
        ({"conv_feature_layers": "[(1,1,1)]" + " * 99" * 99}, "conv_feature_layers"),
        ({"conv_feature_layers": "(" * 9999}, "conv_feature_layers"),
        ({"conv_feature_layers": "[(512,0,5)]"}, "conv_feature_layers"),
    ],
)
def test_another_architecture_is_refused(tmp_path, changes, message):
    path = checkpoints.write(tmp_path / "x.pt", "hubert", tiny.fairseq_hubert())
    checkpoint = torch.load(path, weights_only=False)
    checkpoint["cfg"]["model"].update(changes)
    torch.save(checkpoint, path)
    with pytest.raises(InputError, match=message) as error:
        load(path)
    assert str(error.value).startswith(f"{path}: ")
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 1_000
    if "settings" in message or "holds" in message:
        with pytest.raises(InputError, match=message):
            random(path)


def test_a_checkpoint_without_settings_is_refused(tmp_path):
    path = tmp_path / "x.pt"
    torch.save({"model": tiny.fairseq_hubert().state_dict(), "args": argparse.Namespace()}, path)
    with pytest.raises(InputError, match="a model without a name"):
        load(path)
    torch.save({"model": tiny.fairseq_hubert().state_dict()}, path)
    with pytest.raises(InputError, match="no settings"):
        load(path)


def test_another_sample_rate_is_refused(tmp_path):
    path = checkpoints.write(tmp_path / "x.pt", "hubert", tiny.fairseq_hubert())
    checkpoint = torch.load(path, weights_only=False)
    checkpoint["cfg"]["task"]["sample_rate"] = 24_000
    torch.save(checkpoint, path)
    with pytest.raises(InputError, match="trained at 24000 Hz"):
        load(path)
