"""music_hubert computes what fairseq's HubertModel computes."""

import pytest
import torch

from music_ssl_fairseq.criterions.music_hubert import (
    MusicHubertCriterion,
    MusicHubertCriterionConfig,
)
from music_ssl_fairseq.errors import InputError
from tests import tiny

VARIANTS = [
    {},
    {"extractor_mode": "layer_norm", "layer_norm_first": True, "conv_bias": True},
    {"feature_grad_mult": 0.1, "logit_temp": 0.2, "final_dim": 8},
]


def _pair(monkeypatch, batch, fast="off", k=(20,), **fields):
    """Our model and fairseq's with the same weights, and the same mask in fairseq's."""
    torch.manual_seed(1)
    theirs = tiny.fairseq_hubert(*k, **fields)
    ours = tiny.music_hubert(*k, fast=fast, **fields)
    ours.load_state_dict(theirs.state_dict(), strict=True)
    monkeypatch.setattr(
        "fairseq.models.hubert.hubert.compute_mask_indices",
        lambda *args, **kwargs: batch["mask"].numpy().copy(),
    )
    return ours, theirs


def _our_loss(model, batch, **weights):
    criterion = MusicHubertCriterion(MusicHubertCriterionConfig(**weights), None)
    sample = {
        "net_input": {"source": batch["source"], "mask": batch["mask"]},
        "target": batch["units"] + 4,  # [B, F, sets]
        "ntokens": batch["source"].numel(),
        "nsentences": len(batch["source"]),
    }
    return criterion(model, sample)


def _their_loss(model, batch, **weights):
    from fairseq.criterions.hubert_criterion import HubertCriterion

    weights = {"pred_masked_weight": 1.0, "pred_nomask_weight": 0.0} | weights
    criterion = HubertCriterion(None, loss_weights=[10.0], **weights)
    padding = torch.zeros(batch["source"].shape, dtype=torch.bool)
    sample = {
        "id": torch.arange(len(batch["source"])),
        "net_input": {"source": batch["source"], "padding_mask": padding},
        "target_list": list((batch["units"] + 4).unbind(-1)),
    }
    return criterion(model, sample)


@pytest.mark.parametrize("fast", ["off", "on"])
@pytest.mark.parametrize("fields", VARIANTS)
@pytest.mark.parametrize("weights", [{}, {"pred_nomask_weight": 0.5}])
def test_loss_and_gradients_equal_fairseqs(monkeypatch, fields, weights, fast):
    batch = tiny.batch()
    ours, theirs = _pair(monkeypatch, batch, fast, **fields)
    loss, size, logs = _our_loss(ours, batch, **weights)
    their_loss, their_size, their_logs = _their_loss(theirs, batch, **weights)
    assert size == their_size
    assert loss.item() == pytest.approx(their_loss.item(), rel=1e-5)
    assert logs["loss_m"].item() == pytest.approx(their_logs["loss_m_0"], rel=1e-5)
    assert logs["correct_m"].item() == their_logs["correct_m_0"]
    assert ("correct_u" in logs) == bool(weights)  # in training only where they count
    loss.backward()
    their_loss.backward()
    tiny.assert_equal_gradients(ours, theirs)
    loss, _, logs = _our_loss(ours.eval(), batch, **weights)
    assert loss.item() == pytest.approx(their_loss.item(), rel=1e-5)
    assert logs["correct_u"].item() == their_logs["correct_u_0"]


@pytest.mark.parametrize("fast", ["off", "on"])
def test_several_label_sets_equal_fairseqs_multi_target_hubert(monkeypatch, fast):
    batch = tiny.batch()
    others = torch.randint(0, 7, batch["units"].shape)
    batch["units"] = torch.cat([batch["units"], others], -1)
    ours, theirs = _pair(monkeypatch, batch, fast, k=(20, 7))
    loss, _, logs = _our_loss(ours, batch, pred_nomask_weight=0.5)
    their_loss, _, their_logs = _their_loss(theirs, batch, pred_nomask_weight=0.5)
    assert loss.item() == pytest.approx(their_loss.item(), rel=1e-5)
    for name in ("loss_m_0", "loss_m_1", "correct_m_0", "correct_m_1", "correct_u_1"):
        assert logs[name].item() == pytest.approx(their_logs[name], rel=1e-5)
    loss.backward()
    their_loss.backward()
    theirs_by_name = dict(theirs.named_parameters())
    for name, parameter in ours.named_parameters():
        expected = theirs_by_name[name].grad
        assert (parameter.grad - expected).norm() <= 1e-4 * expected.norm() + 1e-4, name


def test_label_weights_scale_each_sets_loss():
    batch = tiny.batch()
    batch["units"] = torch.cat([batch["units"], batch["units"] % 7], -1)
    model = tiny.music_hubert(20, 7)
    _, _, logs = _our_loss(model, batch, label_weights=[2.0, 0.5])
    expected = 2.0 * logs["loss_m_0"] + 0.5 * logs["loss_m_1"]
    torch.testing.assert_close(logs["loss_m"], expected)
    with pytest.raises(InputError, match="a number for each of the 2 label sets"):
        _our_loss(model, batch, label_weights=[1.0, 1.0, 1.0])


def test_state_dict_goes_both_ways():
    theirs, ours = tiny.fairseq_hubert(), tiny.music_hubert()
    theirs.load_state_dict(ours.state_dict(), strict=True)
    for name, tensor in ours.state_dict().items():
        assert torch.equal(theirs.state_dict()[name], tensor)


def test_layers_equal_fairseqs(monkeypatch):
    batch = tiny.batch()
    ours, theirs = _pair(monkeypatch, batch)
    theirs.eval()
    layers = ours.layers(batch["source"])
    assert len(layers) == 4
    assert ours.training
    padding = torch.zeros(batch["source"].shape, dtype=torch.bool)
    for layer in (1, 2, 3):
        expected, _ = theirs.extract_features(batch["source"], padding, output_layer=layer)
        torch.testing.assert_close(layers[layer], expected, rtol=1e-4, atol=1e-5)


def test_padding_changes_nothing_for_the_rest():
    """A padded crop's real frames come out as those of the same crop alone."""
    model = tiny.music_hubert(extractor_mode="layer_norm", conv_pos=128).eval()
    source = torch.randn(2, 9600)
    padded = torch.zeros(2, 12800)
    padded[:, :9600] = source
    padding = torch.zeros(2, 12800, dtype=torch.bool)
    padding[:, 9600:] = True
    alone = model.layers(source)[-1]
    together = model.layers(padded, padding)[-1]
    torch.testing.assert_close(together[:, : alone.size(1)], alone, rtol=1e-4, atol=1e-5)


def test_logits_hold_no_tensor_of_units_by_frames_by_width():
    """Memory of the head grows with frames x units, not with frames x units x width."""
    model = tiny.music_hubert(2000, final_dim=256)
    x = torch.randn(64, 32, requires_grad=True)
    saved = []
    hooks = torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t.numel()) or t, id)
    with hooks:
        (logits,) = model.logits([x])
    assert logits.shape == (64, 2004)
    assert max(saved) < 64 * 2004 * 8


@pytest.mark.parametrize("fast", ["off", "on"])
def test_label_sets_are_predicted_from_their_layers(fast):
    torch.manual_seed(1)
    usual = tiny.music_hubert(20, 30)
    tapped = tiny.music_hubert(20, 30, label_layers=[3, 1], fast=fast)
    tapped.load_state_dict(usual.state_dict(), strict=True)
    batch = tiny.batch()
    target = torch.cat([batch.pop("units") + 4] * 2, dim=-1)
    expected, found = (model(target=target, **batch) for model in (usual, tapped))
    torch.testing.assert_close(found["logits_m"][0], expected["logits_m"][0])
    found["logits_m"][1].sum().backward()
    with_gradient = [any(p.grad is not None for p in m.parameters()) for m in tapped.encoder.layers]
    assert with_gradient == [True, False, False]


@pytest.mark.parametrize("layers", [[1], [0, 3], [4, 1]])
def test_label_layers_that_cannot_be_are_one_line(layers):
    with pytest.raises(InputError, match="give a layer from 1 to 3 for each of the 2 label sets"):
        tiny.music_hubert(20, 30, label_layers=layers)
