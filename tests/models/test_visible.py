"""`model.encode: visible`: the Transformer sees unmasked frames, a decoder predicts the others."""

import pytest
import torch
from torch.nn import functional as F

from music_ssl_fairseq import upstream
from music_ssl_fairseq.errors import InputError
from music_ssl_fairseq.export.__main__ import main as export
from music_ssl_fairseq.modules.decoder import Decoder
from music_ssl_fairseq.modules.encoder_config import AudioEncoderConfig
from music_ssl_fairseq.modules.views import pack, packing_of, take, unpack
from tests import checkpoints, tiny

FAMILIES = ["music_hubert", "music2vec"]
NONE = {"decoder_input_dropout": 0.0}


def model_of(family, **fields):
    torch.manual_seed(1)
    k = fields.pop("k", ())
    model = getattr(tiny, family)(*k, **{"encode": "visible", **NONE, **fields})
    model.set_num_updates(0)
    return model


def loss_of(model, batch, **more):
    """The summed loss over masked frames, and the mean square of the extractor's features."""
    batch = {key: value for key, value in batch.items() if key != "units"} | more
    if not hasattr(model, "label_embs_concat"):
        output = model(**batch)
        return F.mse_loss(output["prediction"], output["teacher_target"], reduction="sum")
    output = model(**batch, score_unmasked=False)
    pairs = zip(output["logits_m"], output["target_m"].unbind(-1), strict=True)
    losses = [F.cross_entropy(*pair, reduction="sum") for pair in pairs]
    return sum(losses) + output["features_pen"] + output.get("cqt_error", 0)


def batch_of(family, crops=3, **fields):
    batch = tiny.batch(crops, **fields)
    if family == "music_hubert":
        batch["target"] = batch["units"] + 4
    return batch


def masks(views, frames, number):
    """`[views, frames]` with as many masked frames in each."""
    return torch.stack([torch.randperm(frames) < number for _ in range(views)])


@pytest.mark.parametrize("counts", [(4, 4), (4, 1), (0, 7)])
def test_packing_and_unpacking_are_inverse(counts):
    visible = torch.stack([torch.randperm(9) < count for count in counts])
    number = max(counts)
    packing = packing_of(visible, number)
    x = torch.randn(2, 9, 3, dtype=torch.float64, requires_grad=True)
    packed = pack(x, packing)
    for row, count in enumerate(counts):
        assert torch.equal(packed[row, :count], x[row, visible[row]])
        assert not packed[row, count:].any()
    assert torch.equal(unpack(packed, packing), x * visible.unsqueeze(-1))
    assert torch.equal(pack(unpack(packed, packing), packing), packed)
    indices = visible.flatten().nonzero()[:, 0]
    assert torch.equal(take(x, indices), x.flatten(0, 1)[indices])
    torch.autograd.gradcheck(lambda y: pack(y, packing), x)
    torch.autograd.gradcheck(lambda y: unpack(y, packing), packed.detach().requires_grad_())
    torch.autograd.gradcheck(lambda y: take(y, indices), x)


@pytest.mark.parametrize("layer_norm_first", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
def test_an_encoder_that_sees_everything_is_the_usual_one(family, layer_norm_first):
    model = model_of(family, layer_norm_first=layer_norm_first).eval()
    usual = getattr(tiny, family)(layer_norm_first=layer_norm_first)
    heads = ("decoder.", "final_proj.")
    encoder = [name for name in model.state_dict() if not name.startswith((*heads, "_ema"))]
    assert encoder == [name for name in usual.state_dict() if not name.startswith(heads)]
    source = tiny.batch()["source"]
    seen = []
    model.decoder.register_forward_hook(lambda _module, args, _output: seen.append(args[0]))
    mask = torch.zeros(len(source), model.grid.num_frames(source.size(1)), dtype=torch.bool)
    x = model.project(model.extract(source))
    model.contextualise(model.mask_views(x, mask), mask, None, model.execution)
    torch.testing.assert_close(seen[0], model.encoder(x)[0])


def test_masked_frames_are_not_seen():
    model = model_of("music_hubert").eval()
    x = torch.randn(2, 29, 32)
    mask = masks(2, 29, 12)
    other = torch.where(mask.unsqueeze(-1), torch.randn_like(x), x)
    found = [
        model.contextualise(model.mask_views(y, mask), mask, None, model.execution)[0]
        for y in (x, other)
    ]
    assert torch.equal(*found)


@pytest.mark.parametrize("encode", ["visible", "all"])
@pytest.mark.parametrize("family", FAMILIES)
def test_several_masks_are_crops_given_several_times(family, encode):
    sets = {"k": (20, 7), "cqt_bands": 12, "pitch_taps": 1024, "projection_targets": "logmel"}
    fields = {**sets, "projection_size": 9} if family == "music_hubert" else {}
    model = model_of(family, **{"encode": encode, **fields})
    batch = batch_of(family, 2)
    if family == "music_hubert":
        batch["target"] = torch.cat([batch["target"], batch["target"] % 7], -1)
    batch["mask"] = masks(6, batch["mask"].size(1), 11)
    model.eval()  # the random projections' statistics stay
    found = []
    for whole in (batch, {key: repeated(value) for key, value in batch.items()}):
        model.zero_grad()
        loss = loss_of(model, whole)
        loss.backward()
        found.append([loss.detach(), *[p.grad for p in model.parameters()]])
    for one, other in zip(*found, strict=True):
        assert (one - other).norm() <= 1e-4 * other.norm() + 1e-6


def repeated(value):
    return value if len(value) == 6 else value.repeat_interleave(3, 0)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_fast_path_has_the_same_gradients(family):
    batch = batch_of(family)
    batch["mask"] = masks(3, batch["mask"].size(1), 11)
    found = []
    for fast in ("off", "on"):
        model = model_of(family, fast=fast)
        loss = loss_of(model, batch, num_visible=batch["mask"].size(1) - 11)
        loss.backward()
        assert all(p.grad is not None for p in model.parameters())
        found.append([loss.detach(), *[p.grad for p in model.parameters()]])
    for plain, fast in zip(*found, strict=True):
        assert (fast - plain).norm() <= 1e-4 * plain.norm() + 1e-6


def test_a_padded_crop_counts_as_it_does_alone():
    # A group norm's statistics, like a stack of positional convolutions, know of padding.
    model = model_of("music_hubert", extractor_mode="layer_norm").eval()
    long, short = batch_of("music_hubert", 1), batch_of("music_hubert", 1, seconds=0.4, seed=1)
    both = {key: padded(long[key], short[key]) for key in long}
    padding = torch.zeros(both["source"].shape, dtype=torch.bool)
    padding[1, short["source"].size(1) :] = True
    both["source"][1] = 0
    both["source"][1, : short["source"].size(1)] = short["source"][0]
    together = model(**without_units(both), padding_mask=padding)
    alone = [model(**without_units(one)) for one in (long, short)]
    for kind in ("logits_m", "logits_u"):
        expected = torch.cat([output[kind][0] for output in alone])
        torch.testing.assert_close(together[kind][0], expected, rtol=1e-4, atol=1e-4)


def without_units(batch):
    return {key: value for key, value in batch.items() if key != "units"}


def padded(one, other):
    value = -1 if one.dtype == torch.int64 else 0
    rows = [one[0], other[0]]
    return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=value)


@pytest.mark.parametrize("kernel", [7, 4])
def test_the_decoder_is_fairseqs(kernel):
    from fairseq.examples.data2vec.models.modalities.modules import D2vDecoderConfig, Decoder1d

    sizes = {"decoder_dim": 24, "decoder_groups": 4, "decoder_kernel": kernel}
    sizes |= {"decoder_layers": 3}
    ours = Decoder(AudioEncoderConfig(encoder_embed_dim=32, decoder_input_dropout=0.0, **sizes))
    theirs = Decoder1d(D2vDecoderConfig(**sizes), 32)
    state = theirs.state_dict()
    projection = {name: state.pop(name) for name in list(state) if name.startswith("proj.")}
    ours.load_state_dict(state, strict=True)
    visible = masks(2, 15, 8)
    packing = packing_of(visible, 8)
    x = torch.randn(2, 8, 32)
    filled = unpack(x, packing) + 0.5 * ~visible.unsqueeze(-1)
    found = ours(x, packing, ~visible, torch.full((32,), 0.5))
    found = F.linear(found, projection["proj.weight"], projection["proj.bias"])
    torch.testing.assert_close(found, theirs(filled, None))


@pytest.mark.parametrize("family", FAMILIES)
def test_it_loads_and_exports_as_an_encoder(tmp_path, family, capsys):
    fields = {} if family == "music_hubert" else {"ema_layers_only": False}
    fields |= {} if family == "music_hubert" else {"ema_transformer_only": False}
    model = model_of(family, **fields).eval()
    path = checkpoints.write(tmp_path / "x.pt", family, model)
    loaded = upstream.load(path)
    waveform = torch.randn(1, 8000)
    for layer, expected in zip(loaded.layers(waveform), model.layers(waveform), strict=True):
        torch.testing.assert_close(layer, expected)
    for format_ in ("huggingface", "fairseq"):
        arguments = ["--checkpoint", str(path), "--to", str(tmp_path / format_)]
        assert export([*arguments, "--format", format_]) == 0
    again = upstream.load(tmp_path / "fairseq" / "checkpoint.pt")
    torch.testing.assert_close(again.layers(waveform)[-1], loaded.layers(waveform)[-1])


def test_what_cannot_be_is_one_line():
    message = r"label_layers=\[2\] does not go with model.encode=visible"
    with pytest.raises(InputError, match=message):
        model_of("music_hubert", label_layers=[2])
