"""music2vec that predicts units as well: the loss of both, and what becomes of its heads."""

import pytest
import torch
from fairseq.logging import metrics
from torch.nn import functional as F

from music_ssl_fairseq.criterions.music2vec import Music2VecCriterion, Music2VecCriterionConfig
from music_ssl_fairseq.errors import InputError
from music_ssl_fairseq.upstream import load
from tests import checkpoints, tiny
from tests.export import exported


def _sample(sets: int):
    batch = tiny.batch()
    units = batch.pop("units") + 4
    sample = {"net_input": batch, "ntokens": batch["source"].numel(), "nsentences": 3}
    return {**sample, "target": torch.cat([units + n for n in range(sets)], dim=-1)}


@pytest.mark.parametrize("clones", [1, 2])
@pytest.mark.parametrize("fast", ["off", "on"])
def test_the_loss_is_that_of_the_regression_and_that_of_the_units(fast, clones):
    torch.manual_seed(1)
    model = tiny.music2vec(20, 30, label_layers=[1, 3], fast=fast)
    without = tiny.music2vec(fast=fast)
    missing = without.load_state_dict(model.state_dict(), strict=False).unexpected_keys
    assert missing == ["label_embs_concat", "unit_proj.weight", "unit_proj.bias"]
    sample = _sample(2)
    inputs = sample["net_input"]
    inputs["mask"] = inputs["mask"].repeat_interleave(clones, 0)
    inputs["mask"][-1] = inputs["mask"][-1].roll(3)  # so that views of a crop differ
    criterion = Music2VecCriterion(
        Music2VecCriterionConfig(unit_weight=0.5, label_weights=[1, 3]), None
    )
    loss, frames, logs = criterion(model, sample)
    regression, _, _ = criterion(without, {k: v for k, v in sample.items() if k != "target"})

    mask = inputs["mask"]
    views = inputs["source"].repeat_interleave(clones, 0)
    x = model.encoder_input(model.extract(views), mask)[0]
    _, states = model.contextualise(x, mask, None, model.execution)
    expected = 0.0
    for number, (layer, weight) in enumerate([(1, 1), (3, 3)]):
        projection = slice(16 * number, 16 * (number + 1))
        y = F.linear(
            states[layer - 1][mask],
            model.unit_proj.weight[projection],
            model.unit_proj.bias[projection],
        )
        units = model.label_embs_concat.split([24, 34])[number]
        scores = F.cosine_similarity(y[:, None], units[None], dim=-1) / 0.1
        target = sample["target"][..., number].repeat_interleave(clones, 0)[mask]
        expected += weight * F.cross_entropy(scores, target, reduction="sum").item()
    assert frames == int(mask.sum())
    assert loss.item() == pytest.approx(regression.item() + 0.5 * expected, rel=1e-5)
    with metrics.aggregate(new_root=True) as found:
        criterion.reduce_metrics([logs])
    values = found.get_smoothed_values()
    assert values["loss"] == pytest.approx(loss.item() / frames, abs=1e-3)
    assert values["loss_m"] == pytest.approx(values["loss_m_0"] + 3 * values["loss_m_1"], abs=1e-3)
    assert 0 <= values["accuracy_m_1"] <= 1
    assert values["perplexity_pred_0"] >= 1
    loss.backward()
    assert model.label_embs_concat.grad.norm() > 0


def test_wrong_numbers_of_layers_or_weights_are_one_line():
    with pytest.raises(InputError, match="give a layer from 1 to 3 for each of the 1 label sets"):
        tiny.music2vec(20, label_layers=[1, 3])
    criterion = Music2VecCriterion(Music2VecCriterionConfig(label_weights=[1.0]), None)
    with pytest.raises(InputError, match="a number for each of the 2 label sets"):
        criterion(tiny.music2vec(20, 30), _sample(2))


@pytest.mark.parametrize("whole", [False, True])
def test_exports_have_the_encoder_and_no_heads_of_units(tmp_path, whole):
    fields = {"ema_transformer_only": not whole, "ema_layers_only": not whole}
    model = tiny.music2vec(20, **fields)
    model.set_num_updates(0)
    source = checkpoints.write(tmp_path / "x.pt", "music2vec", model, normalize=True)
    folder = exported.export(source, tmp_path / "out", "--format", "fairseq")
    state = torch.load(folder / "checkpoint.pt", weights_only=True)["model"]
    theirs = tiny.fairseq_data2vec(**fields)
    theirs.set_num_updates(0)
    theirs.load_state_dict(dict(state), strict=True)
    assert not [n for n in [*state, *state["_ema"]] if n.startswith(("unit_proj", "label_embs"))]
    assert load(folder / "checkpoint.pt").fingerprint == load(source).fingerprint
