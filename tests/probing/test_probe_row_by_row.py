"""On a CPU rows are trained one by one: as a batch of them would be, and as each would be alone."""

from types import SimpleNamespace

import pytest
import torch
from omegaconf import OmegaConf
from torch.nn import functional as F

from music_ssl_fairseq.criterions.music_probe import MusicProbeCriterion
from music_ssl_fairseq.probing.heads import row_by_row
from music_ssl_fairseq.probing.heads.adam import RowAdam, RowAdamConfig
from music_ssl_fairseq.probing.heads.grid import MIXED, ProbeRows, grid
from music_ssl_fairseq.probing.heads.row_by_row import Update

LAYERS = ["0", "1", "2", "3"]
ROWS = grid([*LAYERS, MIXED], [1e-3, 1e-2])
UPDATES = [Update(slice(first, first + 8), draw) for draw, first in enumerate(range(0, 60, 8))]


def heads(rows=ROWS) -> ProbeRows:
    return ProbeRows(rows, LAYERS, 24, 40, 3, dropout=0.2, seed=5).train()


def adam(model: ProbeRows) -> RowAdam:
    optimiser = RowAdam(OmegaConf.structured(RowAdamConfig()), model.parameters())
    optimiser.set_rows(range(len(model.rows)), [row.learning_rate for row in model.rows])
    return optimiser


def data() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(60, len(LAYERS), 24, generator=generator)
    return features, torch.randint(0, 3, (60,), generator=generator)


def criterion(kind: str) -> MusicProbeCriterion:
    return MusicProbeCriterion(SimpleNamespace(kind=kind))


def cross_entropy(outputs, target):
    return criterion("multi-class").loss_and_gradient(None, outputs, target)


def train(model: ProbeRows, threads: int = 1) -> torch.Tensor:
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        return row_by_row.train(model, adam(model), *data(), UPDATES, cross_entropy)
    finally:
        torch.set_num_threads(before)


def test_rows_one_by_one_are_the_rows_of_a_batch():
    model, batched = heads(), heads()
    features, target = data()
    optimiser, losses = adam(batched), torch.zeros(len(ROWS))
    for items, draw in UPDATES:
        optimiser.zero_grad()
        logits = batched(features[items], draw)
        wanted = target[items].repeat(len(logits), 1)
        each = F.cross_entropy(logits.transpose(1, 2), wanted, reduction="none").sum(1)
        losses += each.detach()
        optimiser.backward(each.sum())
        optimiser.multiply_grads(1 / len(target[items]))
        optimiser.step()
    torch.testing.assert_close(train(model), losses, rtol=1e-4, atol=1e-5)
    for i in range(len(ROWS)):
        for name, value in model.state(i).items():
            torch.testing.assert_close(value, batched.state(i)[name], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("index", [0, 5, 9])
@pytest.mark.parametrize("threads", [1, 3])
def test_a_row_is_the_same_alone_bit_for_bit(index, threads):
    together, alone = heads(), heads([ROWS[index]])
    before = together.state(index)
    losses = train(together, threads)
    assert torch.equal(losses[index : index + 1], train(alone))
    for name, value in together.state(index).items():
        assert torch.equal(value, alone.state(0)[name]), name
        if name != "mix" or ROWS[index].layer == MIXED:
            assert not torch.equal(value, before[name]), name
    features, _ = data()
    evaluated = row_by_row.evaluate(together, features)[index]
    assert torch.equal(evaluated, row_by_row.evaluate(alone, features)[0])


def test_evaluation_is_the_batch_s():
    model = heads().eval()
    features, _ = data()
    torch.testing.assert_close(row_by_row.evaluate(model, features), model(features))


def test_one_thread_s_error_is_not_lost():
    model = heads()

    def fail(outputs, target):
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        row_by_row.train(model, adam(model), *data(), UPDATES, fail)


@pytest.mark.parametrize("kind", ["multi-class", "key", "multi-label", "regression"])
def test_the_gradient_is_the_loss_s(kind):
    outputs = torch.randn(7, 4)
    target = torch.randn(7, 4) if kind == "regression" else (torch.rand(7, 4) > 0.5).float()
    if kind in ("multi-class", "key"):
        target = torch.randint(0, 4, (7,))
    model = SimpleNamespace(normalised_target=lambda numbers: numbers / 2 - 1)
    loss, gradient = criterion(kind).loss_and_gradient(model, outputs, target)
    leaf = outputs.clone().requires_grad_()
    expected = criterion(kind)._losses(model, leaf.unsqueeze(0), target).sum()
    expected.backward()
    torch.testing.assert_close(loss, expected.detach())
    torch.testing.assert_close(gradient, leaf.grad)
