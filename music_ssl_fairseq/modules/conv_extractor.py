"""The convolutional feature extractor: waveform to 50 feature vectors a second."""

import ast
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from music_ssl_fairseq.errors import InputError
from music_ssl_fairseq.modules.fast import use_fast, working_dtype

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
        fast: `model.fast`.
    """

    def __init__(
        self,
        layers: Sequence[tuple[int, int, int]],
        mode: str,
        bias: bool,
        fast: str = "auto",
    ):
        super().__init__()
        if mode not in ("default", "layer_norm"):
            raise InputError(f"extractor_mode {mode!r}: choose 'default' or 'layer_norm'")
        self.mode = mode
        self.fast = fast
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
        # Channels last: norms and products run along them, and nothing has to be transposed.
        x = waveform.unsqueeze(-1)
        convolve = conv_channels_last if use_fast(self.fast, waveform) else _conv
        for parts in self.conv_layers:
            conv = parts["0"]
            x = convolve(x, conv.weight, conv.bias, conv.stride[0])
            if "2" in parts:
                x = self._normalise(parts["2"], x)
            x = F.gelu(x)
        return x

    def _normalise(self, norm: nn.Module, x: Tensor) -> Tensor:
        # fp32 whatever the precision: the statistics of half a million samples need it.
        y = x.float()
        if self.mode == "layer_norm":
            layer = norm.get_submodule("1")
            y = F.layer_norm(y, y.shape[-1:], layer.weight.float(), layer.bias.float(), layer.eps)  # type: ignore[operator,arg-type]
            return y.to(x.dtype)
        variance, mean = torch.var_mean(y, dim=1, keepdim=True, correction=0)
        scale = norm.weight.float() * torch.rsqrt(variance + norm.eps)  # type: ignore[operator]
        return ((y - mean) * scale + norm.bias.float()).to(x.dtype)  # type: ignore[operator]


def _conv(x: Tensor, weight: Tensor, bias: Tensor | None, stride: int) -> Tensor:
    return F.conv1d(x.transpose(1, 2), weight, bias, stride).transpose(1, 2)


def conv_channels_last(x: Tensor, weight: Tensor, bias: Tensor | None, stride: int) -> Tensor:
    """Unpadded convolution as matrix products, without a copy for the extractor's strides.

    With kernel = stride, windows are a reshaped view of the input. With a kernel of 3 and a stride
    of 2 they overlap in one frame: the first two taps are such a view, the third is every second
    frame. A single input channel is unfolded.

    Args:
        x: `[B, T, C]`.
        weight: `[channels, C, kernel]`.

    Returns:
        `[B, (T - kernel) // stride + 1, channels]`.
    """
    dtype = working_dtype(x)
    x, weight = x.to(dtype), weight.to(dtype)
    batch, length, in_channels = x.shape
    kernel = weight.size(-1)
    frames = (length - kernel) // stride + 1
    taps = weight.permute(2, 1, 0)  # [kernel, C, channels]
    if in_channels == 1:
        # Tensor cores want a multiple of 8 numbers in a row.
        extra = -kernel % 8
        windows = F.pad(x.squeeze(-1), (0, extra)).unfold(-1, kernel + extra, stride)[:, :frames]
        y = windows @ F.pad(taps.squeeze(1), (0, 0, 0, extra))
    elif kernel < stride:
        return _conv(x, weight, bias, stride)
    else:
        first = x[:, : frames * stride].reshape(batch, frames, stride * in_channels)
        y = first @ taps[:stride].reshape(stride * in_channels, -1)
        for tap in range(stride, kernel):
            y = y + x[:, tap : tap + (frames - 1) * stride + 1 : stride] @ taps[tap]
    return y if bias is None else y + bias.to(dtype)


class ScaleGradient(torch.autograd.Function):
    """Identity whose gradient is multiplied by a constant (`feature_grad_mult`)."""

    @staticmethod
    def forward(ctx, x: Tensor, scale: float) -> Tensor:
        ctx.scale = scale
        return x.view_as(x)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None]:
        return grad * ctx.scale, None
