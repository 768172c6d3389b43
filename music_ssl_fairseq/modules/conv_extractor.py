"""The convolutional feature extractor: from a waveform to 50 feature vectors per second."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from music_ssl_fairseq.errors import InputError
from music_ssl_fairseq.fast.dispatch import PLAIN, Execution, gelu

Norm = nn.GroupNorm | nn.LayerNorm
Conv = Callable[[Tensor, Tensor, Tensor | None, int], Tensor]


def conv1d(x: Tensor, weight: Tensor, bias: Tensor | None, stride: int) -> Tensor:
    """Convolve `[B, T, C]` with `[channels, C, kernel]`: `[B, frames, channels]`, unpadded."""
    return F.conv1d(x.transpose(1, 2), weight, bias, stride).transpose(1, 2)


def apply_norm(norm: Norm, x: Tensor) -> Tensor:
    """Apply a norm to `[B, T, C]`, in fp32: statistics of half a million samples need it."""
    y, weight, bias = x.float(), norm.weight.float(), norm.bias.float()
    if isinstance(norm, nn.LayerNorm):
        return F.layer_norm(y, norm.normalized_shape, weight, bias, norm.eps).to(x.dtype)
    variance, mean = torch.var_mean(y, dim=1, keepdim=True, correction=0)
    return ((y - mean) * (weight * torch.rsqrt(variance + norm.eps)) + bias).to(x.dtype)


class ConvLayer(nn.Module):
    """A convolution, its norm if it has one, and a GELU, under fairseq's names.

    The names are positions in an nn.Sequential: 0 is the convolution, 2 the norm, a layer norm
    being the middle one of three (`2.1`).
    """

    def __init__(self, conv: nn.Conv1d, norm: Norm | None):
        super().__init__()
        nn.init.kaiming_normal_(conv.weight)
        self.add_module("0", conv)
        if isinstance(norm, nn.LayerNorm):
            self.add_module("2", nn.ModuleDict({"1": norm}))
        elif norm is not None:
            self.add_module("2", norm)

    @property
    def conv(self) -> nn.Conv1d:
        return self._modules["0"]  # type: ignore[return-value]

    @property
    def norm(self) -> Norm | None:
        """Return the norm after the convolution, if there is one."""
        norm = self._modules.get("2")
        return norm["1"] if isinstance(norm, nn.ModuleDict) else norm  # type: ignore[return-value]

    def forward(self, x: Tensor, convolve: Conv = conv1d) -> Tensor:
        """Map `[B, T, C]` to `[B, frames, channels]`, with another `convolve` if given."""
        x = convolve(x, self.conv.weight, self.conv.bias, self.conv.stride[0])
        return gelu(x if self.norm is None else apply_norm(self.norm, x))


class ConvExtractor(nn.Module):
    """Unpadded 1-d convolutions with GELU (wav2vec 2.0, section 2; fairseq's names).

    Args:
        layers: `(channels, kernel, stride)` per layer.
        mode: "default" has one group norm, with one group per channel, after the first convolution;
            "layer_norm" normalises the channels of each frame after every convolution.
        bias: whether the convolutions have biases.
    """

    def __init__(self, layers: Sequence[tuple[int, int, int]], mode: str, bias: bool):
        super().__init__()
        if mode not in ("default", "layer_norm"):
            raise InputError(f"extractor_mode {mode!r}: choose 'default' or 'layer_norm'")
        self.mode = str(mode)
        self.conv_layers = nn.ModuleList()
        channels = 1
        for i, (dim, kernel, stride) in enumerate(layers):
            norm: Norm | None = None
            if self.mode == "layer_norm":
                norm = nn.LayerNorm(dim)
            elif i == 0:
                norm = nn.GroupNorm(dim, dim)
            conv = nn.Conv1d(channels, dim, kernel, stride, bias=bias)
            self.conv_layers.append(ConvLayer(conv, norm))
            channels = dim

    def forward(self, waveform: Tensor, execution: Execution = PLAIN) -> Tensor:
        """Map `[B, T]` to features `[B, frames, channels]`."""
        # The plain execution calls each layer in turn, on `[B, T, C]`. Channels are last because
        # norms run along them, and so that nothing has to be transposed for the encoder.
        return execution.extract(list(self.conv_layers), waveform)
