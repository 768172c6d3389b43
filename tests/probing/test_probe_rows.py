"""A row of the batched probe is the probe it would be alone."""

import pytest
import torch
from omegaconf import OmegaConf
from torch import nn
from torch.nn import functional as F

from music_ssl_fairseq.probing.heads import adam as row_adam
from music_ssl_fairseq.probing.heads.adam import RowAdam, RowAdamConfig
from music_ssl_fairseq.probing.heads.grid import MIXED, ProbeRows, Row, grid
from music_ssl_fairseq.probing.heads.schedule import RowSchedule

LAYERS = ["0", "1", "2", "3"]
ROWS = grid([*LAYERS, MIXED], [1e-3, 1e-2])
SIZES = {"dimension": 6, "hidden_size": 16, "num_outputs": 3, "seed": 5}


def heads(rows=ROWS, dropout=0.2) -> ProbeRows:
    return ProbeRows(rows, LAYERS, dropout=dropout, **SIZES)


def adam(model: nn.Module) -> RowAdam:
    return RowAdam(OmegaConf.structured(RowAdamConfig()), model.parameters())


def batches(count=12, size=10):
    generator = torch.Generator().manual_seed(0)
    for _ in range(count):
        features = torch.randn(size, len(LAYERS), SIZES["dimension"], generator=generator)
        yield features, torch.randint(0, 3, (size,), generator=generator)


def step(model: ProbeRows, optimiser: RowAdam, features, target, draw: int) -> None:
    """As fairseq does it: a summed loss, gradients divided by the number of items."""
    optimiser.zero_grad()
    logits = model(features, draw)
    rows = target.repeat(len(logits))
    optimiser.backward(F.cross_entropy(logits.flatten(0, 1), rows, reduction="sum"))
    optimiser.multiply_grads(1 / len(target))
    optimiser.step()


def train(model: ProbeRows, rates: list[float], count=12) -> None:
    optimiser = adam(model.train())
    optimiser.set_rows(range(len(rates)), rates)
    for draw, (features, target) in enumerate(batches(count)):
        step(model, optimiser, features, target, draw)


@pytest.mark.parametrize("index", [0, 3, 8, 9], ids=lambda i: f"{ROWS[i].layer}")
def test_each_row_equals_the_same_probe_trained_alone(index):
    together, alone = heads(), heads([ROWS[index]])
    before = together.state(index)
    train(together, [row.learning_rate for row in ROWS])
    train(alone, [ROWS[index].learning_rate])
    for name, value in together.state(index).items():
        torch.testing.assert_close(value, alone.state(0)[name], rtol=1e-4, atol=1e-6)
        if name != "mix" or ROWS[index].layer == MIXED:
            assert not torch.equal(value, before[name]), name


def test_both_ways_of_updating_are_the_same(monkeypatch):
    models = heads(), heads()
    rates = [row.learning_rate for row in ROWS]
    train(models[0], rates)
    monkeypatch.setattr(row_adam, "_LARGE", 1)
    train(models[1], rates)
    for i in range(len(ROWS)):
        for name, value in models[1].state(i).items():
            torch.testing.assert_close(value, models[0].state(i)[name], rtol=1e-4, atol=1e-6)


def test_rows_that_stop_leave_the_others_as_they_were():
    whole, cut = heads(), heads()
    kept = [1, 4, 9]
    train(whole, [row.learning_rate for row in ROWS])
    cut.keep(kept)
    train(cut, [ROWS[i].learning_rate for i in kept])
    for place, i in enumerate(kept):
        for name, value in cut.state(place).items():
            torch.testing.assert_close(value, whole.state(i)[name], rtol=1e-4, atol=1e-6)


def test_the_optimiser_follows_rows_that_stop_in_the_middle():
    kept = [0, 5, 8]
    models = heads(), heads()
    for model, stops in zip(models, (None, 6), strict=True):
        optimiser = adam(model.train())
        rows = list(range(len(ROWS)))
        for update, (features, target) in enumerate(batches()):
            if update == stops:
                model.keep(kept)
                rows = kept
            optimiser.set_rows(rows, [ROWS[i].learning_rate for i in rows])
            step(model, optimiser, features, target, update)
    for place, i in enumerate(kept):
        for name, value in models[1].state(place).items():
            torch.testing.assert_close(value, models[0].state(i)[name], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("layer", ["2", MIXED])
def test_a_row_is_torch_s_layers_and_torch_s_adam(layer):
    row = Row(layer, 3e-3)
    model = heads([row], dropout=0)
    start = model.state(0)
    first, second = nn.Linear(6, 16), nn.Linear(16, 3)
    mix = nn.Parameter(torch.zeros(3))
    with torch.no_grad():
        first.weight.copy_(start["hidden_weight"][0])
        first.bias.copy_(start["hidden_bias"][0])
        second.weight.copy_(start["output_weight"][0])
        second.bias.copy_(start["output_bias"][0])
    reference = torch.optim.Adam([mix, *first.parameters(), *second.parameters()], lr=3e-3)
    train(model, [row.learning_rate])
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


def test_dropout_has_its_probability_and_is_each_row_s_own():
    model = ProbeRows(ROWS, LAYERS, 6, 500, 3, 0.2, seed=1).train()
    kept = model.kept(40, draw=3)
    shares = kept.float().mean((1, 2))
    assert ((shares - 0.8).abs() < 0.01).all()
    assert torch.equal(kept, model.kept(40, draw=3))
    assert not torch.equal(kept, model.kept(40, draw=4))
    for other in kept[1:]:
        assert 0.03 < (~other & ~kept[0]).float().mean() < 0.05  # independent: 0.2 squared


def test_schedule_is_torch_s_reduce_on_plateau_row_by_row():
    generator = torch.Generator().manual_seed(3)
    scores = torch.rand(30, 4, generator=generator, dtype=torch.float64)
    rates = [1e-2, 1e-3, 1e-4, 1e-5]
    schedule = RowSchedule(rates, patience=100, lr_patience=3, lr_factor=0.5)
    parameters = [nn.Parameter(torch.zeros(1)) for _ in rates]
    references = [
        torch.optim.lr_scheduler.ReduceLROnPlateau(
            torch.optim.SGD([p], lr=rate), "max", factor=0.5, patience=2, threshold=0, eps=0
        )
        for p, rate in zip(parameters, rates, strict=True)
    ]
    for epoch, row in enumerate(scores):
        schedule.update(torch.arange(4), row, epoch + 1)
        for reference, score in zip(references, row, strict=True):
            reference.step(score.item())
        expected = [reference.optimizer.param_groups[0]["lr"] for reference in references]
        torch.testing.assert_close(schedule.learning_rate, torch.tensor(expected).double())
    torch.testing.assert_close(schedule.best_score, scores.max(0).values)
    assert schedule.best_epoch.tolist() == (scores.argmax(0) + 1).tolist()


def test_a_row_stops_after_patience_and_one_that_is_no_number_counts_as_no_better():
    schedule = RowSchedule([1.0, 1.0], patience=2, lr_patience=9, lr_factor=0.5)
    rows = torch.arange(2)
    assert schedule.update(rows, torch.tensor([0.1, float("nan")]), 1).stopped.tolist() == [0, 0]
    assert schedule.update(rows, torch.tensor([0.1, float("nan")]), 2).stopped.tolist() == [0, 1]
    assert schedule.update(rows[:1], torch.tensor([0.2]), 3).stopped.tolist() == [0]
    assert schedule.update(rows[:1], torch.tensor([0.0]), 4).stopped.tolist() == [0]
    assert schedule.update(rows[:1], torch.tensor([0.2]), 5).stopped.tolist() == [1]
    assert schedule.epochs.tolist() == [5, 2]
