"""The grid of heads as one batched module: one matrix product instead of dozens.

Each head is `Linear -> ReLU -> Dropout -> Linear` on one layer of the encoder, or on a sum of its
Transformer layers with learned weights. Heads share nothing: each draws its parameters and its
dropout from its own seed. So a head computes what it would compute alone, up to rounding.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any

import torch
from torch import Tensor, nn

MIXED = "all"
"""Name of the weighted sum, beside the names of the layers."""

PARAMETERS = ("mix", "hidden_weight", "hidden_bias", "output_weight", "output_bias")

_VECTORS_AT_ONCE = 512  # in evaluation: 84 heads of a base model then need 0.2 GB


@dataclass(frozen=True)
class Head:
    """A head of the grid: its input and its learning rate."""

    layer: str
    learning_rate: float

    def seed(self, seed: int, draw: int) -> int:
        """Return the seed of draw number `draw` of this head, whatever other heads there are."""
        text = f"{seed} {self.layer} {self.learning_rate:.6g} {draw}"
        return int.from_bytes(blake2b(text.encode(), digest_size=7).digest(), "little")


def grid(layers: Sequence[str], learning_rates: Sequence[float]) -> list[Head]:
    """Pair every layer with every learning rate; the weighted sums come last."""
    ordered = [*(layer for layer in layers if layer != MIXED), *([MIXED] * (MIXED in layers))]
    return [Head(layer, float(rate)) for layer in ordered for rate in learning_rates]


class ProbeHeads(nn.Module):
    """The heads in training: `heads` are those left of the grid, in its order.

    The first dimension of each parameter is the head: `[heads, ...]`.
    """

    mix: nn.Parameter
    hidden_weight: nn.Parameter
    hidden_bias: nn.Parameter
    output_weight: nn.Parameter
    output_bias: nn.Parameter

    def __init__(
        self,
        heads: Sequence[Head],
        layers: Sequence[str],
        dimension: int,
        hidden_size: int,
        num_outputs: int,
        dropout: float,
        seed: int,
    ):
        """Draw each head's parameters as `nn.Linear` draws them, from the head's own seed.

        Args:
            heads: weighted sums after all others, as `grid` orders them.
            layers: names of the layers in the features; sums leave out the first.
            dropout: probability with which a hidden value is 0 in training.
        """
        super().__init__()
        self.heads = list(heads)
        self.layer_names = list(layers)
        self.dropout = dropout
        self.seed = seed
        sizes = dimension, hidden_size, num_outputs, len(layers) - 1
        drawn = [_draw(head.seed(seed, 0), *sizes) for head in heads]
        for name in PARAMETERS:
            self.register_parameter(name, nn.Parameter(torch.stack([d[name] for d in drawn])))
        self._gradient = torch.empty(0)
        self._single = torch.empty(0)
        self._single_of: object = None

    def keep(self, indices: Sequence[int]) -> None:
        """Drop all heads but these. Numbers count the remaining heads."""
        chosen = torch.tensor(list(indices), dtype=torch.long)
        self.heads = [self.heads[i] for i in indices]
        for name in PARAMETERS:
            parameter = getattr(self, name)
            parameter.data = parameter.data[chosen.to(parameter.device)]
            parameter.grad = None

    def resize(self, heads: Sequence[Head]) -> None:
        """Allocate the parameters of these heads, to be loaded."""
        self.heads = list(heads)
        for name in PARAMETERS:
            parameter = getattr(self, name)
            parameter.data = parameter.data.new_zeros(len(heads), *parameter.shape[1:])
            parameter.grad = None

    def state(self, index: int) -> dict[str, Tensor]:
        """Copy the parameters of one head: `[1, ...]` each."""
        return {
            name: getattr(self, name).detach()[index : index + 1].clone() for name in PARAMETERS
        }

    def forward(self, features: Tensor, draw: int = 0) -> Tensor:
        """Map features `[N, layers, D]` to logits `[heads, N, outputs]`.

        In training, `draw` is the number of the dropout's draw.
        """
        if not self.training:
            parts = [self._logits(part, None) for part in features.split(_VECTORS_AT_ONCE)]
            return parts[0] if len(parts) == 1 else torch.cat(parts, 1)
        kept = self.dropout_mask(features.size(0), draw) if self.dropout > 0 else None
        return self._logits(features, kept)

    def _logits(self, features: Tensor, kept: Tensor | None) -> Tensor:
        single = self._single_layers(features.device)
        hidden = _HiddenLayer.apply(
            features.transpose(0, 1),
            single,
            self.mix[len(single) :],
            self.hidden_weight,
            self.hidden_bias,
            kept,
            1.0 if kept is None else 1 / (1 - self.dropout),
            self._weight_gradient(),
        )
        # The gradient of this product is three times as fast as with both factors transposed.
        outputs = torch.baddbmm(
            self.output_bias.unsqueeze(2), self.output_weight, hidden.transpose(1, 2)
        )
        return outputs.transpose(1, 2)

    def _single_layers(self, device: torch.device) -> Tensor:
        """Return the layers of the heads but the sums; copied to the device once."""
        if self._single_of != (self.heads, device):
            single = [
                self.layer_names.index(head.layer) for head in self.heads if head.layer != MIXED
            ]
            self._single = torch.tensor(single, dtype=torch.long, device=device)
            self._single_of = self.heads, device
        return self._single

    def _weight_gradient(self) -> Tensor:
        """Reuse the memory of the largest gradient: fresh pages take as long as the product."""
        weight = self.hidden_weight
        if self._gradient.shape != weight.shape or self._gradient.device != weight.device:
            self._gradient = torch.empty_like(weight)
        return self._gradient

    def dropout_mask(self, num_vectors: int, draw: int) -> Tensor:
        """Draw which hidden values are kept: `[heads, N, H]` of 0.0 and 1.0."""
        # Sixteen random bits per value meet the probability to 1/65536, at a tenth of the cost of
        # a random float. The mask is of floats: a CPU multiplies by booleans seven times slower.
        hidden_size, device = self.hidden_bias.size(1), self.hidden_bias.device
        per_head = num_vectors * hidden_size
        words = torch.empty(len(self.heads), -(-per_head // 4), dtype=torch.int64, device=device)
        generator = torch.Generator(device)
        for head, place in zip(self.heads, words, strict=True):
            generator.manual_seed(head.seed(self.seed, draw + 1))
            place.random_(torch.iinfo(torch.int64).min, None, generator=generator)
        drawn = words.view(torch.int16)[:, :per_head].view(-1, num_vectors, hidden_size)
        kept = torch.empty(drawn.shape, device=device)
        return torch.ge(drawn, round(self.dropout * 65536) - 32768, out=kept)


class _HiddenLayer(torch.autograd.Function):
    """The input of each head, its first linear layer, ReLU and dropout.

    Separate operations would write the hidden values five times. Their gradient of the weights
    would be hundreds of megabytes of fresh memory per step, which takes as long as the product.
    """

    @staticmethod
    def forward(
        ctx: Any,
        features: Tensor,  # [layers, N, D]
        single: Tensor,  # [heads but the sums] their layers
        mix: Tensor,  # [sums, layers - 1]
        weight: Tensor,
        bias: Tensor,
        kept: Tensor | None,
        scale: float,
        gradient: Tensor,
    ) -> Tensor:
        weights = mix.softmax(-1)
        inputs = features.new_empty(len(weight), *features.shape[1:])
        if len(mix):
            features = features.contiguous()
            torch.mm(weights, features[1:].flatten(1), out=inputs[len(single) :].flatten(1))
        torch.index_select(features, 0, single, out=inputs[: len(single)])
        # Scaling may precede ReLU: as a factor of the product it costs nothing.
        hidden = torch.baddbmm(
            bias.unsqueeze(1), inputs, weight.transpose(1, 2), beta=scale, alpha=scale
        ).relu_()
        if kept is not None:
            hidden.mul_(kept)
        ctx.scale, ctx.gradient = scale, gradient
        ctx.save_for_backward(features, single, inputs, weights, weight, hidden)
        return hidden

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        features, single, inputs, weights, weight, hidden = ctx.saved_tensors
        # Values that ReLU or dropout set to 0 have no gradient.
        grad = torch.ops.aten.threshold_backward(gradients[0], hidden, 0)
        accumulates = weight.grad is not None
        if not accumulates:
            weight.grad = ctx.gradient
        weight.grad.baddbmm_(grad.transpose(1, 2), inputs, beta=int(accumulates), alpha=ctx.scale)
        grad_mix = grad_features = None
        if ctx.needs_input_grad[0]:
            grad_inputs = torch.bmm(grad, weight).mul_(ctx.scale)
            grad_features = torch.zeros_like(features)
            grad_features.index_add_(0, single, grad_inputs[: len(single)])
            if len(weights):
                mixed = weights.t() @ grad_inputs[len(single) :].flatten(1)
                grad_features[1:] += mixed.view_as(features[1:])
        if count := len(weights):
            grad_sum = torch.bmm(grad[-count:], weight[-count:]).mul_(ctx.scale)
            grad_weights = torch.mm(grad_sum.flatten(1), features[1:].flatten(1).t())
            inner = (grad_weights * weights).sum(-1, keepdim=True)
            grad_mix = weights * (grad_weights - inner)
        return grad_features, None, grad_mix, None, grad.sum(1).mul_(ctx.scale), None, None, None


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
