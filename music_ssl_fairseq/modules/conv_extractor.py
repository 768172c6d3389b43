"""The convolutional feature extractor: waveform to 50 feature vectors a second."""

import ast
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from music_ssl_fairseq.errors import InputError

DEFAULT_CONV_LAYERS = "[(512,10,5)] + [(512,3,2)] * 4 + [(512,2,2)] * 2"


def parse_conv_layers(text: str) -> list[tuple[int, int, int]]:
    """`(channels, kernel, stride)` of each layer, from fairseq's way of writing them.

    fairseq evaluates the string as Python, and it comes out of checkpoints too: here only lists,
    tuples, numbers, `+` and `*` are understood, so it cannot run code.

    Raises:
        InputError: if it says anything else.
    """

    def value(node: ast.expr) -> object:
        match node:
            case ast.Constant(value=int() as number):
                return number
            case ast.Tuple(elts=items):
                return tuple(value(item) for item in items)
            case ast.List(elts=items):
                return [value(item) for item in items]
            case ast.BinOp(left=left, op=ast.Add(), right=right):
                return value(left) + value(right)  # type: ignore[operator]
            case ast.BinOp(left=left, op=ast.Mult(), right=right):
                return value(left) * value(right)  # type: ignore[operator]
        raise ValueError

    try:
        layers = value(ast.parse(text.strip(), mode="eval").body)
        assert isinstance(layers, list) and layers
        return [(int(dim), int(kernel), int(stride)) for dim, kernel, stride in layers]
    except (ValueError, TypeError, SyntaxError, AssertionError):
        raise InputError(
            f"conv_feature_layers {text!r}: expected a list of (channels, kernel, stride), "
            f"like {DEFAULT_CONV_LAYERS!r}"
        ) from None


class ConvExtractor(nn.Module):
    """Unpadded 1-d convolutions with GELU (wav2vec 2.0, section 2; fairseq's names).

    Args:
        layers: `(channels, kernel, stride)` of each.
        mode: "default" has one group norm, with a group a channel, after the first convolution;
            "layer_norm" normalises the channels of each frame after every one.
        bias: whether the convolutions have biases.
    """

    def __init__(self, layers: Sequence[tuple[int, int, int]], mode: str, bias: bool):
        super().__init__()
        if mode not in ("default", "layer_norm"):
            raise InputError(f"extractor_mode {mode!r}: choose 'default' or 'layer_norm'")
        self.mode = mode
        self.conv_layers = nn.ModuleList()
        channels = 1
        for i, (dim, kernel, stride) in enumerate(layers):
            conv = nn.Conv1d(channels, dim, kernel, stride, bias=bias)
            nn.init.kaiming_normal_(conv.weight)
            # The keys are the positions in fairseq's nn.Sequential: 0 convolution, 2 norm.
            parts = nn.ModuleDict({"0": conv})
            if mode == "layer_norm":
                parts["2"] = nn.ModuleDict({"1": nn.LayerNorm(dim)})
            elif i == 0:
                parts["2"] = nn.GroupNorm(dim, dim)
            self.conv_layers.append(parts)
            channels = dim

    def forward(self, waveform: Tensor) -> Tensor:
        """Map `[B, T]` to features `[B, frames, channels]`."""
        x = waveform.unsqueeze(1)
        for parts in self.conv_layers:
            x = parts["0"](x)
            if "2" in parts:
                x = self._normalise(parts["2"], x)
            x = F.gelu(x)
        return x.transpose(1, 2)

    def _normalise(self, norm: nn.Module, x: Tensor) -> Tensor:
        # fp32 whatever the precision: the statistics of half a million samples need it.
        if self.mode == "layer_norm":
            layer_norm = norm["1"]  # type: ignore[index]
            normed = F.layer_norm(
                x.transpose(1, 2).float(),
                layer_norm.normalized_shape,
                layer_norm.weight.float(),
                layer_norm.bias.float(),
                layer_norm.eps,
            )
            return normed.transpose(1, 2).to(x.dtype)
        return F.group_norm(
            x.float(), norm.num_groups, norm.weight.float(), norm.bias.float(), norm.eps  # type: ignore[arg-type,union-attr,operator]
        ).to(x.dtype)


class ScaleGradient(torch.autograd.Function):
    """Identity whose gradient is multiplied by a constant (`feature_grad_mult`)."""

    @staticmethod
    def forward(ctx, x: Tensor, scale: float) -> Tensor:
        ctx.scale = scale
        return x.view_as(x)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None]:
        return grad * ctx.scale, None
