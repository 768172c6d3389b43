"""A head of the grid is the probe it would be alone."""

import pytest
import torch
from omegaconf import OmegaConf
from torch import nn
from torch.nn import functional as F

from music_ssl_fairseq.probing.heads import probe_heads as grid_module
from music_ssl_fairseq.probing.heads.adam import RowAdam, RowAdamConfig
from music_ssl_fairseq.probing.heads.plateau import HeadSchedule
from music_ssl_fairseq.probing.heads.probe_heads import MIXED, Head, ProbeHeads, grid
from music_ssl_fairseq.probing.heads.update import head_losses, mini_batches
from music_ssl_fairseq.probing.spec import KINDS

LAYERS = ["0", "1", "2", "3"]
HEADS = grid([*LAYERS, MIXED], [1e-3, 1e-2])
SIZES = {"dimension": 6, "hidden_size": 16, "num_outputs": 3, "seed": 5}


def heads(chosen=HEADS, dropout=0.2) -> ProbeHeads:
    return ProbeHeads(chosen, LAYERS, dropout=dropout, **SIZES)


def adam(model: nn.Module) -> RowAdam:
    return RowAdam(OmegaConf.structured(RowAdamConfig()), model.parameters())


def batches(count=12, size=10):
    generator = torch.Generator().manual_seed(0)
    for _ in range(count):
        features = torch.randn(size, len(LAYERS), SIZES["dimension"], generator=generator)
        yield features, torch.randint(0, 3, (size,), generator=generator)


def step(model: ProbeHeads, optimiser: RowAdam, features, target, draw: int) -> None:
    """As fairseq does it: a summed loss, gradients divided by the number of items."""
    optimiser.zero_grad()
    logits = model(features, draw)
    repeated = target.repeat(len(logits))
    optimiser.backward(F.cross_entropy(logits.flatten(0, 1), repeated, reduction="sum"))
    optimiser.multiply_grads(1 / len(target))
    optimiser.step()


def train(model: ProbeHeads, rates: list[float], count=12) -> None:
    optimiser = adam(model.train())
    optimiser.set_heads(range(len(rates)), rates)
    for draw, (features, target) in enumerate(batches(count)):
        step(model, optimiser, features, target, draw)


@pytest.mark.parametrize("index", [0, 3, 8, 9], ids=lambda i: f"{HEADS[i].layer}")
def test_each_head_equals_the_same_probe_trained_alone(index):
    together, alone = heads(), heads([HEADS[index]])
    before = together.state(index)
    train(together, [head.learning_rate for head in HEADS])
    train(alone, [HEADS[index].learning_rate])
    for name, value in together.state(index).items():
        torch.testing.assert_close(value, alone.state(0)[name], rtol=1e-4, atol=1e-6)
        if name != "mix" or HEADS[index].layer == MIXED:
            assert not torch.equal(value, before[name]), name


def test_heads_that_stop_leave_the_others_as_they_were():
    whole, cut = heads(), heads()
    kept = [1, 4, 9]
    train(whole, [head.learning_rate for head in HEADS])
    cut.keep(kept)
    train(cut, [HEADS[i].learning_rate for i in kept])
    for place, i in enumerate(kept):
        for name, value in cut.state(place).items():
            torch.testing.assert_close(value, whole.state(i)[name], rtol=1e-4, atol=1e-6)


def test_the_optimiser_follows_heads_that_stop_in_the_middle():
    kept = [0, 5, 8]
    models = heads(), heads()
    for model, stops in zip(models, (None, 6), strict=True):
        optimiser = adam(model.train())
        left = list(range(len(HEADS)))
        for update, (features, target) in enumerate(batches()):
            if update == stops:
                model.keep(kept)
                left = kept
            optimiser.set_heads(left, [HEADS[i].learning_rate for i in left])
            step(model, optimiser, features, target, update)
    for place, i in enumerate(kept):
        for name, value in models[1].state(place).items():
            torch.testing.assert_close(value, models[0].state(i)[name], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("layer", ["2", MIXED])
def test_a_head_is_torch_s_layers_and_torch_s_adam(layer):
    model = heads([Head(layer, 3e-3)], dropout=0)
    start = model.state(0)
    first, second = nn.Linear(6, 16), nn.Linear(16, 3)
    mix = nn.Parameter(torch.zeros(3))
    with torch.no_grad():
        first.weight.copy_(start["hidden_weight"][0])
        first.bias.copy_(start["hidden_bias"][0])
        second.weight.copy_(start["output_weight"][0])
        second.bias.copy_(start["output_bias"][0])
    reference = torch.optim.Adam([mix, *first.parameters(), *second.parameters()], lr=3e-3)
    train(model, [3e-3])
    for features, target in batches():
        inputs = torch.einsum("l,nld->nd", mix.softmax(0), features[:, 1:])
        if layer != MIXED:
            inputs = features[:, 2]
        reference.zero_grad()
        F.cross_entropy(second(F.relu(first(inputs))), target).backward()
        reference.step()
    trained = model.state(0)
    torch.testing.assert_close(trained["hidden_weight"][0], first.weight, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(trained["output_weight"][0], second.weight, rtol=1e-4, atol=1e-6)
    if layer == MIXED:
        torch.testing.assert_close(trained["mix"][0], mix, rtol=1e-4, atol=1e-6)


def test_gradients_of_several_batches_add_up():
    model = heads(dropout=0)
    whole = list(batches(2))
    for features, _ in whole:
        model(features).square().sum().backward()
    added = model.hidden_weight.grad.clone()
    model.zero_grad()
    model(torch.cat([features for features, _ in whole])).square().sum().backward()
    torch.testing.assert_close(added, model.hidden_weight.grad, rtol=1e-4, atol=1e-5)


def test_evaluation_in_parts_is_evaluation_at_once(monkeypatch):
    model = heads().eval()
    features = next(batches(1, 600))[0]
    monkeypatch.setattr(grid_module, "_VECTORS_AT_ONCE", 1000)
    whole = model(features)
    monkeypatch.setattr(grid_module, "_VECTORS_AT_ONCE", 7)
    torch.testing.assert_close(model(features), whole)


@pytest.mark.parametrize("kind", ["multi-class", "key", "multi-label", "regression", "beats"])
def test_the_loss_of_a_head_is_torch_s(kind):
    generator = torch.Generator().manual_seed(0)
    outputs = torch.randn(3, 7, 1 if kind == "beats" else 4, generator=generator)
    target = torch.rand(7, 4, generator=generator)
    loss = nn.MSELoss() if kind == "regression" else nn.BCEWithLogitsLoss()
    if kind in ("multi-class", "key"):
        target, loss = target.argmax(1), nn.CrossEntropyLoss()
    elif kind == "beats":
        target = target[:, 0]
    outputs_of = outputs.squeeze(2)
    expected = torch.stack([7 * loss(head, target) for head in outputs_of])
    torch.testing.assert_close(head_losses(KINDS[kind], outputs, target), expected)


def test_a_sample_is_cut_into_mini_batches():
    features, target = next(batches(1, 10))
    sample = {"net_input": {"features": features}, "target": target, "nsentences": 10}
    parts = list(mini_batches({**sample, "batch_size": 4}))
    assert [part["ntokens"] for part in parts] == [4, 4, 2]
    assert torch.equal(torch.cat([part["net_input"]["features"] for part in parts]), features)
    assert torch.equal(torch.cat([part["target"] for part in parts]), target)
    frames = {**sample, "ntokens": 10, "batch_size": 16}  # of beats: windows of many vectors
    assert list(mini_batches(frames)) == [frames]


def test_dropout_has_its_probability_and_is_each_head_s_own():
    model = ProbeHeads(HEADS, LAYERS, 6, 500, 3, 0.2, seed=1).train()
    kept = model.dropout_mask(40, draw=3)
    shares = kept.mean((1, 2))
    assert ((shares - 0.8).abs() < 0.01).all()
    assert torch.equal(kept, model.dropout_mask(40, draw=3))
    assert not torch.equal(kept, model.dropout_mask(40, draw=4))
    for other in kept[1:]:
        assert 0.03 < ((1 - other) * (1 - kept[0])).mean() < 0.05  # independent: 0.2 squared


def test_schedule_is_torch_s_reduce_on_plateau_head_by_head():
    generator = torch.Generator().manual_seed(3)
    scores = torch.rand(30, 4, generator=generator, dtype=torch.float64)
    rates = [1e-2, 1e-3, 1e-4, 1e-5]
    schedule = HeadSchedule(rates, patience=100, lr_patience=3, lr_factor=0.5)
    parameters = [nn.Parameter(torch.zeros(1)) for _ in rates]
    references = [
        torch.optim.lr_scheduler.ReduceLROnPlateau(
            torch.optim.SGD([p], lr=rate), "max", factor=0.5, patience=2, threshold=0, eps=0
        )
        for p, rate in zip(parameters, rates, strict=True)
    ]
    for epoch, of_epoch in enumerate(scores):
        schedule.update(torch.arange(4), of_epoch, epoch + 1)
        for reference, score in zip(references, of_epoch, strict=True):
            reference.step(score.item())
        expected = [reference.optimizer.param_groups[0]["lr"] for reference in references]
        torch.testing.assert_close(schedule.learning_rate, torch.tensor(expected).double())
    torch.testing.assert_close(schedule.best_score, scores.max(0).values)
    assert schedule.best_epoch.tolist() == (scores.argmax(0) + 1).tolist()


def test_a_head_stops_after_patience_and_one_that_is_no_number_counts_as_no_better():
    schedule = HeadSchedule([1.0, 1.0], patience=2, lr_patience=9, lr_factor=0.5)
    both = torch.arange(2)
    assert schedule.update(both, torch.tensor([0.1, float("nan")]), 1)[1].tolist() == [0, 0]
    assert schedule.update(both, torch.tensor([0.1, float("nan")]), 2)[1].tolist() == [0, 1]
    assert schedule.update(both[:1], torch.tensor([0.2]), 3)[1].tolist() == [0]
    assert schedule.update(both[:1], torch.tensor([0.0]), 4)[1].tolist() == [0]
    assert schedule.update(both[:1], torch.tensor([0.2]), 5)[1].tolist() == [1]
    assert schedule.epochs.tolist() == [5, 2]
