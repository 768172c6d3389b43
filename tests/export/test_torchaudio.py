"""torchaudio's HuBERT and ours are the same model, in both directions."""

import json

import pytest
import torch
import torchaudio

from music_ssl_fairseq.errors import InputError
from music_ssl_fairseq.frames import parse_conv_layers
from music_ssl_fairseq.modules.audio_encoder import AudioEncoder, AudioEncoderConfig
from music_ssl_fairseq.upstream import load, read
from music_ssl_fairseq.upstream.contents import ARCHITECTURE, Contents, encoder_state
from music_ssl_fairseq.upstream.torchaudio import to_state
from tests.export import exported


def their_layers(model, source, padding=None) -> list[torch.Tensor]:
    lengths = None if padding is None else (~padding).sum(-1)
    with torch.no_grad():
        return model.eval().extract_features(source, lengths)[0]


def test_hubert_base_loads_a_music_hubert_of_base_size(tmp_path):
    ours = AudioEncoder(AudioEncoderConfig(fast="off"))
    state = encoder_state(ours.state_dict())
    contents = Contents("music_hubert", dict(ARCHITECTURE), state, normalise=False)
    theirs = torchaudio.models.hubert_base()
    theirs.load_state_dict(to_state(contents))
    source = torch.randn(1, 8_000)
    for found, wanted in zip(their_layers(theirs, source), ours.layers(source)[1:], strict=True):
        torch.testing.assert_close(found, wanted, rtol=0, atol=1e-4)
    torch.save(theirs.state_dict(), tmp_path / "hubert_base.pth")
    back = read(tmp_path / "hubert_base.pth")
    assert (back.family, back.normalise) == ("hubert", False)
    assert all(torch.equal(tensor, state[name]) for name, tensor in back.state.items())
    assert state.keys() - back.state.keys() == {"mask_emb"}
    layers = parse_conv_layers(back.config.pop("conv_feature_layers"))
    assert layers == parse_conv_layers(ARCHITECTURE["conv_feature_layers"])
    assert back.config == {k: v for k, v in ARCHITECTURE.items() if k != "conv_feature_layers"}


def test_minimal_hubert_loads_an_exported_model_of_base_size(tmp_path):
    minimal_hubert = pytest.importorskip("minimal_hubert")
    ours = AudioEncoder(AudioEncoderConfig(fast="off"))
    state = encoder_state(ours.state_dict())
    contents = Contents("music_hubert", dict(ARCHITECTURE), state, normalise=False)
    torch.save(to_state(contents), tmp_path / "model.pt")
    theirs = minimal_hubert.HuBERT.from_pretrained(tmp_path / "model.pt").eval()
    source = torch.randn(1, 8_000)
    with torch.no_grad():
        layers = theirs.get_intermediate_outputs(source, before_residual=False)
    for found, wanted in zip(layers, ours.layers(source)[1:], strict=True):
        torch.testing.assert_close(found, wanted, rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    "name", ["music_hubert", "music_hubert, layer_norm_first", "music_hubert, equal widths"]
)
def test_an_exported_model_has_the_same_hidden_states(tmp_path, name):
    family, fields = exported.MODELS[name]
    source = exported.checkpoint(tmp_path / "x.pt", family, **fields)
    folder = exported.export(source, tmp_path / "out", "--format", "torchaudio")
    arguments = json.loads((folder / "wav2vec2_model.json").read_text())
    theirs = torchaudio.models.wav2vec2_model(**arguments)
    theirs.load_state_dict(torch.load(folder / "model.pt"))
    ours = load(source).model
    waveform, padding = exported.padded()
    for mask in (None, padding):
        expected = ours.layers(waveform, mask)[1:]
        real = torch.ones(expected[0].shape[:2], dtype=torch.bool)
        if mask is not None:
            real = ~ours.frame_padding(mask, real.size(1))
        for found, wanted in zip(their_layers(theirs, waveform, mask), expected, strict=True):
            torch.testing.assert_close(found[real], wanted[real], rtol=0, atol=1e-4)
    back, original = read(folder / "model.pt"), read(source)
    assert back.state.keys() == original.state.keys() - {"mask_emb"}
    assert all(torch.equal(back.state[name], original.state[name]) for name in back.state)
    assert {**back.config, "conv_feature_layers": ""} == {
        **original.config,
        "conv_feature_layers": "",
    }


def test_reads_the_model_with_its_pre_training_head(tmp_path):
    shape = {"encoder_embed_dim": 32, "encoder_num_heads": 4, "encoder_num_layers": 2}
    shape |= {"encoder_ff_interm_features": 64, "encoder_pos_conv_groups": 4}
    shape |= {"encoder_pos_conv_kernel": 16, "encoder_layer_norm_first": False}
    shape |= {"extractor_mode": "group_norm", "extractor_conv_bias": False}
    layers = [[24, 10, 5], [24, 8, 4]]
    names = ("projection_dropout", "attention_dropout", "ff_interm_dropout", "dropout")
    dropouts = {f"encoder_{name}": 0.0 for name in (*names, "layer_drop")}
    model = torchaudio.models.hubert_pretrain_model(
        **shape,
        **dropouts,
        extractor_conv_layer_config=layers,
        **{"mask_prob": 0.8, "mask_selection": "static", "mask_other": 0.0, "mask_length": 10},
        **{"no_mask_overlap": False, "mask_min_space": 1, "mask_channel_prob": 0.0},
        **{"mask_channel_selection": "static", "mask_channel_other": 0.0},
        **{"mask_channel_length": 10, "no_mask_channel_overlap": False},
        **{"mask_channel_min_space": 1, "skip_masked": False, "skip_nomask": False},
        **{"num_classes": 5, "final_dim": 8, "feature_grad_mult": None},
    )
    torch.save(model.state_dict(), tmp_path / "x.pt")
    with pytest.raises(InputError, match=r"none of torchaudio's models \(width 32"):
        load(tmp_path / "x.pt")
    arguments = {**shape, "extractor_conv_layer_config": layers}
    (tmp_path / "wav2vec2_model.json").write_text(json.dumps(arguments))
    ours = load(tmp_path / "x.pt")
    assert torch.equal(ours.model.mask_emb, model.mask_generator.mask_embedding)
    source = torch.randn(2, 4_000)
    wanted = their_layers(model.wav2vec2, source)
    for found, layer in zip(ours.model.layers(source)[1:], wanted, strict=True):
        torch.testing.assert_close(found, layer, rtol=0, atol=1e-4)


def test_other_tensors_are_one_line(tmp_path):
    torch.save({"layer.weight": torch.ones(2)}, tmp_path / "x.pt")
    with pytest.raises(InputError, match="neither a fairseq checkpoint nor a state dict of torch"):
        load(tmp_path / "x.pt")


def test_a_stack_of_convolutions_is_refused(tmp_path, capsys):
    source = exported.checkpoint(tmp_path / "x.pt", "music2vec")
    command = ["--checkpoint", str(source), "--to", str(tmp_path / "out"), "--format", "torchaudio"]
    assert exported.main(command) == 1
    assert "torchaudio has no model with pos_conv_depth=5" in capsys.readouterr().err
