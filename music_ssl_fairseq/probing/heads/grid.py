"""Many small probes as the rows of one batched module: one matrix product instead of dozens.

Each row is `Linear -> ReLU -> Dropout -> Linear` on one layer of the encoder, or on a sum of its
Transformer layers with learned weights. Nothing is shared between rows: each has its own
parameters, drawn from its own seed, and its own dropout. So a row computes what it would compute
as the only one.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any

import torch
from torch import Tensor, nn

MIXED = "all"
"""The name of the weighted sum, where others have the name of their layer."""

PARAMETERS = ("mix", "hidden_weight", "hidden_bias", "output_weight", "output_bias")


@dataclass(frozen=True)
class Row:
    """What tells a probe from the others: its input and its learning rate."""

    layer: str
    learning_rate: float

    def seed(self, seed: int, draw: int) -> int:
        """For draw number `draw` of this row: the same whatever rows there are besides it."""
        text = f"{seed} {self.layer} {self.learning_rate:.6g} {draw}"
        return int.from_bytes(blake2b(text.encode(), digest_size=7).digest(), "little")


def grid(layers: Sequence[str], learning_rates: Sequence[float]) -> list[Row]:
    """Every layer with every learning rate; the weighted sums last."""
    ordered = [*(layer for layer in layers if layer != MIXED), *([MIXED] * (MIXED in layers))]
    return [Row(layer, float(rate)) for layer in ordered for rate in learning_rates]


class ProbeRows(nn.Module):
    """The rows that are still being trained.

    Parameters have the row as their first dimension: `[rows, ...]`.
    """

    mix: nn.Parameter
    hidden_weight: nn.Parameter
    hidden_bias: nn.Parameter
    output_weight: nn.Parameter
    output_bias: nn.Parameter

    def __init__(
        self,
        rows: Sequence[Row],
        layers: Sequence[str],
        dimension: int,
        hidden_size: int,
        num_outputs: int,
        dropout: float,
        seed: int,
    ):
        """Draw each row's parameters as `nn.Linear` draws them, from the row's own seed.

        Args:
            rows: weighted sums after all others, as `grid` has them.
            layers: names of the layers in the features; sums are over all but the first.
            dropout: probability with which a hidden value is 0 in training.
        """
        super().__init__()
        self.rows = list(rows)
        self.layers = list(layers)
        self.dropout = dropout
        self.seed = seed
        drawn = [
            _draw(row.seed(seed, 0), dimension, hidden_size, num_outputs, len(layers) - 1)
            for row in rows
        ]
        for name in PARAMETERS:
            self.register_parameter(name, nn.Parameter(torch.stack([d[name] for d in drawn])))
        self._forget()

    def _forget(self) -> None:
        """Drop what depends on how many rows there are."""
        self._plain: Tensor | None = None
        self._space: dict[str, Tensor] = {}

    def keep(self, indices: Sequence[int]) -> None:
        """Go on with these rows only, counted among those that are left."""
        chosen = torch.tensor(list(indices), dtype=torch.long)
        self.rows = [self.rows[i] for i in indices]
        for name in PARAMETERS:
            parameter = getattr(self, name)
            parameter.data = parameter.data[chosen.to(parameter.device)]
            parameter.grad = None
        self._forget()

    def resize(self, rows: Sequence[Row]) -> None:
        """Make place for the parameters of these rows, to be loaded."""
        self.rows = list(rows)
        for name in PARAMETERS:
            parameter = getattr(self, name)
            parameter.data = parameter.data.new_zeros(len(rows), *parameter.shape[1:])
            parameter.grad = None
        self._forget()

    def state(self, index: int) -> dict[str, Tensor]:
        """A copy of one row's parameters, as a module of one row: `[1, ...]` each."""
        return {
            name: getattr(self, name).detach()[index : index + 1].clone() for name in PARAMETERS
        }

    def forward(self, features: Tensor, draw: int = 0) -> Tensor:
        """`[N, layers, D]` to logits `[rows, N, outputs]`.

        Args:
            draw: number of the dropout's draw; only in training.
        """
        kept = None
        if self.training and self.dropout > 0:
            kept = self.kept(features.size(0), draw)
        return self._logits(features, kept)

    def _logits(self, features: Tensor, kept: Tensor | None) -> Tensor:
        plain = self._plain_layers(features.device)
        hidden = _Hidden.apply(
            features.transpose(0, 1),
            plain,
            self.mix[len(plain) :],
            self.hidden_weight,
            self.hidden_bias,
            kept,
            1.0 if kept is None else 1 / (1 - self.dropout),
            self._room,
        )
        # In this order the product's gradient is three times as fast as in the usual one.
        outputs = torch.baddbmm(
            self.output_bias.unsqueeze(2), self.output_weight, hidden.transpose(1, 2)
        )
        return outputs.transpose(1, 2)

    def _room(self, name: str, *shape: int) -> Tensor:
        """Memory that is used again each step: fresh pages cost as much as a product does."""
        size, device = math.prod(shape), self.hidden_weight.device
        space = self._space.get(name)
        if space is None or space.numel() < size or space.device != device:
            space = self._space[name] = torch.empty(size, device=device)
        return space[:size].view(shape)

    def _plain_layers(self, device: torch.device) -> Tensor:
        """Which layer each row but the weighted sums reads: `[rows]` int64."""
        if self._plain is None or self._plain.device != device:
            layers = [self.layers.index(row.layer) for row in self.rows if row.layer != MIXED]
            self._plain = torch.tensor(layers, dtype=torch.long, device=device)
        return self._plain

    def kept(
        self,
        num_items: int,
        draw: int,
        indices: Sequence[int] | None = None,
        out: Tensor | None = None,
    ) -> Tensor:
        """Which hidden values are not 0 this time: `[rows, N, H]` bool.

        Args:
            indices: of these rows only, counted among those that are left.
            out: written to; as numbers, 0 and 1, if it is of floats.
        """
        # Sixteen random bits a value: the probability is met to 1/65536, at a tenth of the cost of
        # drawing a float for each.
        hidden_size, device = self.hidden_bias.size(1), self.hidden_bias.device
        per_row = num_items * hidden_size
        rows = self.rows if indices is None else [self.rows[i] for i in indices]
        words = torch.empty(len(rows), -(-per_row // 4), dtype=torch.int64, device=device)
        generator = torch.Generator(device)
        for row, place in zip(rows, words, strict=True):
            generator.manual_seed(row.seed(self.seed, draw + 1))
            place.random_(torch.iinfo(torch.int64).min, None, generator=generator)
        drawn = words.view(torch.int16)[:, :per_row].view(len(rows), num_items, hidden_size)
        return torch.ge(drawn, round(self.dropout * 65536) - 32768, out=out)


class _Hidden(torch.autograd.Function):
    """Each row's input, the first linear layer of it, ReLU and dropout.

    As operations of their own they would write the hidden values five times, and the inputs and
    the weights' gradient would be hundreds of megabytes of fresh memory each step, which costs as
    much as the product itself. Here all are computed in place.
    """

    @staticmethod
    def forward(
        ctx: Any,
        features: Tensor,  # [layers, N, D]
        plain: Tensor,  # [rows but the sums] their layers
        mix: Tensor,  # [sums, layers - 1]
        weight: Tensor,
        bias: Tensor,
        kept: Tensor | None,
        scale: float,
        room: Callable[..., Tensor],
    ) -> Tensor:
        weights = mix.softmax(-1)
        inputs = room("inputs", len(weight), *features.shape[1:])
        if len(mix):
            features = features.contiguous()
            torch.mm(weights, features[1:].flatten(1), out=inputs[len(plain) :].flatten(1))
        torch.index_select(features, 0, plain, out=inputs[: len(plain)])
        # ReLU leaves the order of scaling open: as a factor of the product it costs nothing.
        hidden = torch.baddbmm(
            bias.unsqueeze(1),
            inputs,
            weight.transpose(1, 2),
            beta=scale,
            alpha=scale,
            out=room("hidden", len(weight), features.size(1), weight.size(1)),
        ).relu_()
        if kept is not None:
            hidden.mul_(kept)
        ctx.scale, ctx.room = scale, room
        ctx.save_for_backward(features, inputs, weights, weight, hidden)
        return hidden

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        features, inputs, weights, weight, hidden = ctx.saved_tensors
        # What is 0 now was so by ReLU or by dropout.
        grad = torch.ops.aten.threshold_backward.grad_input(
            gradients[0], hidden, 0, grad_input=ctx.room("grad", *hidden.shape)
        )
        if weight.grad is None:
            weight.grad = ctx.room("weight_grad", *weight.shape)
            weight.grad.baddbmm_(grad.transpose(1, 2), inputs, beta=0, alpha=ctx.scale)
        else:
            weight.grad.baddbmm_(grad.transpose(1, 2), inputs, alpha=ctx.scale)
        grad_mix = None
        if len(weights):
            count = len(weights)
            grad_sum = torch.bmm(grad[-count:], weight[-count:]).mul_(ctx.scale)
            grad_weights = torch.mm(grad_sum.flatten(1), features[1:].flatten(1).t())
            inner = (grad_weights * weights).sum(-1, keepdim=True)
            grad_mix = weights * (grad_weights - inner)
        return None, None, grad_mix, None, grad.sum(1).mul_(ctx.scale), None, None, None


def _draw(
    seed: int, dimension: int, hidden_size: int, num_outputs: int, num_mixed: int
) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)

    def uniform(*shape: int, fan_in: int) -> Tensor:
        return torch.empty(shape).uniform_(-(fan_in**-0.5), fan_in**-0.5, generator=generator)

    return {
        "mix": torch.zeros(num_mixed),
        "hidden_weight": uniform(hidden_size, dimension, fan_in=dimension),
        "hidden_bias": uniform(hidden_size, fan_in=dimension),
        "output_weight": uniform(num_outputs, hidden_size, fan_in=hidden_size),
        "output_bias": uniform(num_outputs, fan_in=hidden_size),
    }
