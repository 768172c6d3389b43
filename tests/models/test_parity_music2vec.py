"""music2vec computes what fairseq's Data2VecAudioModel computes."""

import pytest
import torch

from music_ssl_fairseq.criterions.music2vec import Music2VecCriterion, Music2VecCriterionConfig
from music_ssl_fairseq.errors import InputError
from music_ssl_fairseq.models.music2vec import target_layers
from tests import tiny

VARIANTS = [
    {},
    {"layer_norm_first": True, "average_top_k_layers": 3},
    # (fairseq then averages all layers, whatever average_top_k_layers.)
    {"ema_transformer_only": False, "ema_layers_only": False, "average_top_k_layers": 3},
    # Alone it changes nothing in fairseq either: ema_layers_only implies ema_transformer_only.
    {"ema_transformer_only": False},
    # (fairseq cannot copy its own single weight-normed convolution into a teacher any more.)
    {"pos_conv_depth": 2, "conv_pos": 64, "extractor_mode": "default", "feature_grad_mult": 0.5},
    {"target_norm": "batch"},
    {"target_norm": "layer"},
]


def _pair(fast="off", **fields):
    torch.manual_seed(1)
    ours = tiny.music2vec(fast=fast, **fields)
    norm = fields.pop("target_norm", "instance")
    norms = {"instance_norm_target_layer": False, f"{norm}_norm_target_layer": True}
    theirs = tiny.fairseq_data2vec(**norms, **fields)
    theirs.set_num_updates(0)
    # A teacher that differs from its student, as after some training.
    for parameter in theirs.ema.model.parameters():
        parameter.data += 0.02 * torch.randn_like(parameter)
    theirs.ema.fp32_params.clear()
    theirs.ema.build_fp32_params()
    ours.load_state_dict(theirs.state_dict(), strict=True)
    return ours, theirs


def _our_loss(model, batch, beta=0.0, scale=None):
    criterion = Music2VecCriterion(Music2VecCriterionConfig(loss_beta=beta, loss_scale=scale), None)
    sample = {
        "net_input": {"source": batch["source"], "mask": batch["mask"]},
        "ntokens": batch["source"].numel(),
        "nsentences": len(batch["source"]),
    }
    return criterion(model, sample)


@pytest.mark.parametrize("fast", ["off", "on"])
@pytest.mark.parametrize("fields", VARIANTS)
@pytest.mark.parametrize("beta", [0.0, 0.25])
def test_loss_gradients_and_variances_equal_fairseqs(fields, beta, fast):
    batch = tiny.batch()
    ours, theirs = _pair(fast, **fields)
    theirs.loss_beta = beta
    loss, size, logs = _our_loss(ours, batch, beta)
    result = theirs(batch["source"], mask_indices=batch["mask"])
    assert size == result["sample_size"]
    assert loss.item() == pytest.approx(result["losses"]["regression"].item(), rel=1e-5)
    with _logged() as values:
        Music2VecCriterion.reduce_metrics([logs])
    assert values()["target_var"] == pytest.approx(result["target_var"].item(), abs=2e-4)
    assert values()["pred_var"] == pytest.approx(result["pred_var"].item(), abs=2e-4)
    loss.backward()
    result["losses"]["regression"].backward()
    tiny.assert_equal_gradients(ours, theirs)


def _logged():
    import contextlib

    from fairseq.logging import metrics

    @contextlib.contextmanager
    def aggregate():
        with metrics.aggregate(new_root=True) as meters:
            yield meters.get_smoothed_values

    return aggregate()


@pytest.mark.parametrize("transformer_only", [True, False])
@pytest.mark.parametrize("layers_only", [True, False])
def test_teacher_follows_as_fairseqs_does(layers_only, transformer_only):
    fields = {"ema_decay": 0.9, "ema_end_decay": 0.99, "ema_anneal_end_step": 4}
    fields |= {"ema_layers_only": layers_only, "ema_transformer_only": transformer_only}
    ours, theirs = _pair(**fields)
    generator = torch.Generator().manual_seed(5)
    for update in range(1, 7):
        theirs_by_name = dict(theirs.named_parameters())
        for name, parameter in ours.named_parameters():
            noise = 0.05 * torch.randn(parameter.shape, generator=generator)
            parameter.data += noise
            theirs_by_name[name].data += noise
        ours.set_num_updates(update)
        theirs.set_num_updates(update)
        assert ours.teacher_decay == pytest.approx(theirs.ema.get_decay())
    expected = theirs.ema.model.state_dict()
    assert set(expected) == set(ours.teacher.model.state_dict())
    for name, tensor in ours.teacher.model.state_dict().items():
        torch.testing.assert_close(tensor, expected[name], rtol=1e-5, atol=1e-6)


def test_teacher_moves_once_an_update_whatever_update_freq():
    model, _ = _pair()
    model.encoder.layers[0].fc1.weight.data += 1.0
    model.set_num_updates(1)
    once = model.teacher.model.state_dict()["layers.0.fc1.weight"].clone()
    model.set_num_updates(1)
    assert torch.equal(model.teacher.model.state_dict()["layers.0.fc1.weight"], once)
    model.set_num_updates(2)
    assert not torch.equal(model.teacher.model.state_dict()["layers.0.fc1.weight"], once)


def test_teacher_rests_in_evaluation():
    model, _ = _pair()
    before = model.teacher.model.state_dict()["layers.0.fc1.weight"].clone()
    model.eval().set_num_updates(10)
    assert torch.equal(model.teacher.model.state_dict()["layers.0.fc1.weight"], before)


def test_state_dict_goes_both_ways():
    ours = tiny.music2vec()
    ours.set_num_updates(0)
    ours.teacher.model.layers[0].fc1.weight.data += 1.0
    theirs = tiny.fairseq_data2vec()
    theirs.set_num_updates(0)
    state = ours.state_dict()
    theirs.load_state_dict(dict(state), strict=True)
    for name, tensor in state["_ema"].items():
        assert torch.equal(theirs.ema.model.state_dict()[name], tensor)
    again = tiny.music2vec()
    again.load_state_dict(dict(state), strict=True)
    assert set(again.state_dict()["_ema"]) == set(state["_ema"])


def test_teacher_is_no_parameter_and_moves_with_the_model():
    model = tiny.music2vec()
    count = sum(p.numel() for p in model.parameters())
    model.set_num_updates(0)
    assert sum(p.numel() for p in model.parameters()) == count
    model.to(torch.float64)
    assert model.mask_emb.dtype == torch.float64
    model.to("meta")
    assert all(p.is_meta for p in model.teacher.model.parameters())


def test_wrong_top_k_is_one_line():
    with pytest.raises(InputError, match="average_top_k_layers 9"):
        tiny.music2vec(average_top_k_layers=9)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"target_layers": [0]}, "target_layers is \\[0\\]: give different layers from 1 to 3"),
        ({"target_layers": [2, 2]}, "different layers"),
        ({"target_layers": [1], "top_k_start": 1}, "set one of them"),
        ({"top_k_start": 3, "top_k_updates": 5}, "1 to average_top_k_layers \\(2\\)"),
        ({"top_k_start": 1}, "the second above 0"),
    ],
)
def test_target_layers_that_cannot_be_are_one_line(fields, message):
    with pytest.raises(InputError, match=message):
        tiny.music2vec(**fields)


def test_the_last_layers_can_be_named():
    torch.manual_seed(1)
    usual, named = tiny.music2vec(), tiny.music2vec(target_layers=[2, 3])
    named.load_state_dict(usual.state_dict())
    batch = tiny.batch()
    batch.pop("units")
    expected, found = (model(**batch)["teacher_target"] for model in (usual, named))
    torch.testing.assert_close(found, expected)


def test_top_k_grows_in_equal_steps():
    cfg = tiny.music2vec(average_top_k_layers=3, top_k_start=1, top_k_updates=9).cfg
    layers = [target_layers(cfg, update) for update in range(0, 12, 3)]
    assert layers == [[3], [2, 3], [1, 2, 3], [1, 2, 3]]
