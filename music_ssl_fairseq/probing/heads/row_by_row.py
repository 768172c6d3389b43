"""A batched probe on a CPU, one row at a time: what a row needs then stays in the caches.

Trained as one batch, dozens of rows pass hundreds of megabytes of weights, gradients and Adam's
moments through memory in each step. Here a thread takes a row, makes several updates of it, and
goes on to the next; other threads do the same with other rows. No operation is shared by rows or
by threads, so that a row's numbers are the same bit for bit whatever other rows there are.
"""

import threading
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from typing import NamedTuple, Protocol

import torch
from torch import Tensor, nn

from music_ssl_fairseq.probing.heads.grid import MIXED, ProbeRows

Loss = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""From outputs `[N, outputs]` and targets to the loss, summed over items, and its gradient."""

_EVALUATED_AT_ONCE = 256


class OfRow(Protocol):
    """The optimiser of one row."""

    def step(self, gradients: list[Tensor]) -> None:
        """One update of the row's parameters."""


class RowOptimizer(Protocol):
    """What is needed of an optimiser; `probing.heads.adam` has it."""

    norm: Tensor

    def prepare(self) -> None:
        """Make place for the state of all rows."""

    def of_row(self, index: int, parameters: Sequence[Tensor]) -> OfRow:
        """One row of these parameters."""


class Update(NamedTuple):
    """A mini-batch.

    Attributes:
        items: which of the features it has.
        draw: number of its dropout's draw.
    """

    items: slice
    draw: int


class _Buffers(threading.local):
    """Memory of a thread, used again for each row: fresh pages cost as much as a product does."""

    def __init__(self) -> None:
        self._tensors: dict[str, Tensor] = {}

    def get(self, name: str, *shape: int) -> Tensor:
        size = torch.Size(shape)
        kept = self._tensors.get(name)
        if kept is None or kept.numel() < size.numel():
            kept = self._tensors[name] = torch.empty(size.numel())
        return kept[: size.numel()].view(size)


_buffers = _Buffers()


@lru_cache(maxsize=2)
def _pool(threads: int) -> ThreadPoolExecutor:
    """Threads that split up no operation any further."""
    return ThreadPoolExecutor(threads, "rows", initializer=lambda: torch.set_num_threads(1))


def _for_each(rows: Iterable[int], work: Callable[[int], None]) -> None:
    """Do some work for each row; a thread that is done with one takes the next."""
    waiting = deque(rows)

    @torch.no_grad()  # holds for a thread
    def loop() -> None:
        while waiting:
            try:
                row = waiting.popleft()
            except IndexError:  # another thread was faster
                return
            work(row)

    threads = torch.get_num_threads()
    for done in [_pool(threads).submit(loop) for _ in range(threads)]:
        done.result()


def train(
    heads: ProbeRows,
    optimizer: RowOptimizer,
    features: Tensor,
    target: Tensor,
    updates: Sequence[Update],
    loss: Loss,
) -> Tensor:
    """Make these updates of all rows.

    Args:
        features: `[N, layers, D]` float32.
        target: `[N, ...]`.

    Returns:
        `[rows]` losses summed over all items. The norm of the output weights' last gradients, of
        all rows but diverged ones, is left in `optimizer.norm`.
    """
    by_layer = features.transpose(0, 1).contiguous()
    losses, norms = torch.zeros(2, len(heads.rows))
    optimizer.prepare()

    def work(index: int) -> None:
        row = _Row(heads, index, by_layer)
        adam = optimizer.of_row(index, row.parameters())
        losses[index] = sum(row.update(adam, target, update, loss) for update in updates)
        norms[index] = row.last_gradient.norm()

    # The weighted sums take longest: first, so that no thread waits for another at the end.
    _for_each(reversed(range(len(heads.rows))), work)
    optimizer.norm = torch.where(norms.isfinite(), norms, 0.0).norm()
    return losses


def evaluate(heads: ProbeRows, features: Tensor) -> Tensor:
    """`[N, layers, D]` to logits `[rows, N, outputs]`, without dropout."""
    by_layer = features.transpose(0, 1).contiguous()
    outputs = features.new_empty(len(heads.rows), len(features), heads.output_bias.size(1))

    def work(index: int) -> None:
        row = _Row(heads, index, by_layer)
        for first in range(0, len(features), _EVALUATED_AT_ONCE):
            items = slice(first, first + _EVALUATED_AT_ONCE)
            outputs[index, items] = row.outputs(row.hidden(row.inputs(items), 1.0).relu_())

    _for_each(range(len(heads.rows)), work)
    return outputs


class _Row:
    """One row's share of a batched probe."""

    def __init__(self, heads: ProbeRows, index: int, by_layer: Tensor):
        self.heads = heads
        self.index = index
        self.by_layer = by_layer
        row = heads.rows[index]
        self.layer = None if row.layer == MIXED else heads.layers.index(row.layer)
        self.mix = heads.mix[index]
        self.weight, self.bias = heads.hidden_weight[index], heads.hidden_bias[index]
        self.output_weight = heads.output_weight[index]
        self.output_bias = heads.output_bias[index]

    def parameters(self) -> list[nn.Parameter]:
        """Of all rows, in the order of the gradients in `update`."""
        heads = self.heads
        hidden, output = (heads.hidden_weight, heads.hidden_bias), (heads.output_weight,)
        return [*hidden, *output, heads.output_bias, *([heads.mix] if self.layer is None else [])]

    def inputs(self, items: slice) -> Tensor:
        """`[N, D]`: a layer, or the weighted sum."""
        if self.layer is not None:
            return self.by_layer[self.layer, items]
        summed = self.by_layer[1:, items]
        inputs = _buffers.get("inputs", *summed.shape[1:])
        torch.mv(summed.flatten(1).t(), self.mix.softmax(-1), out=inputs.view(-1))
        return inputs

    def hidden(self, inputs: Tensor, scale: float) -> Tensor:
        """`[N, H]` times `scale`, before ReLU (which leaves the order of scaling open)."""
        hidden = _buffers.get("hidden", len(inputs), len(self.weight))
        return torch.addmm(self.bias, inputs, self.weight.t(), beta=scale, alpha=scale, out=hidden)

    def outputs(self, hidden: Tensor) -> Tensor:
        """`[N, outputs]`."""
        return torch.addmm(self.output_bias, hidden, self.output_weight.t())

    def update(self, adam: OfRow, target: Tensor, update: Update, loss: Loss) -> float:
        """One mini-batch forward, backward, and into the parameters; the loss of it."""
        inputs = self.inputs(update.items)
        dropout = self.heads.dropout
        scale = 1 / (1 - dropout)
        hidden = self.hidden(inputs, scale).relu_()
        if dropout > 0:
            # As numbers: multiplying by booleans takes seven times as long.
            kept = _buffers.get("kept", 1, *hidden.shape)
            hidden.mul_(self.heads.kept(len(inputs), update.draw, [self.index], kept)[0])
        value, gradient = loss(self.outputs(hidden), target[update.items])
        gradient /= len(inputs)
        back = _buffers.get("back", *hidden.shape)
        torch.mm(gradient, self.output_weight, out=back)
        # What is 0 now was so by ReLU or by dropout.
        torch.ops.aten.threshold_backward.grad_input(back, hidden, 0, grad_input=back)
        of_weight = _buffers.get("weight", *self.weight.shape)
        torch.addmm(of_weight, back.t(), inputs, beta=0, alpha=scale, out=of_weight)
        gradients = [
            of_weight,
            back.sum(0).mul_(scale),
            gradient.t() @ hidden,
            gradient.sum(0),
        ]
        if self.layer is None:
            gradients.append(self._mix_gradient(back, update.items, scale))
        adam.step(gradients)
        self.last_gradient = gradients[2]
        return float(value)

    def _mix_gradient(self, back: Tensor, items: slice, scale: float) -> Tensor:
        of_inputs = torch.mm(back, self.weight).mul_(scale)
        of_weights = self.by_layer[1:, items].flatten(1) @ of_inputs.flatten()
        weights = self.mix.softmax(-1)
        return weights * (of_weights - of_weights @ weights)
