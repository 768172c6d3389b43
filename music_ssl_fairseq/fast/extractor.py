"""The convolutional extractor, its layers fused as far as they allow."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from music_ssl_fairseq.fast.channels_last_conv import conv_channels_last
from music_ssl_fairseq.fast.compilation import compiled
from music_ssl_fairseq.fast.conv_stack import rows_before, run_conv_stack
from music_ssl_fairseq.fast.first_conv import can_fuse, folded_first_conv, fused_first_conv
from music_ssl_fairseq.frames import frames_within


def extract(
    layers: Sequence[Any],
    waveform: Tensor,
    fast: bool,
    compile: bool,
    group_norm: tuple[Tensor, Tensor] | None,
) -> Tensor:
    """Run convolutions, each with its norm and a GELU.

    Args:
        layers: each with `conv`, `norm` (or None), and a `forward` that takes `[B, T, C]` and
            optionally a convolution to use.
        waveform: `[B, T]`.
        fast: whether to use layouts and kernels for GPUs.
        compile: whether to compile what our kernels do not compute.
        group_norm: filters and shifts of `fold_group_norm` for the first layer, if its statistics
            are not those of `waveform`.

    Returns:
        `[B, frames, channels]`.
    """
    first, others = layers[0], layers[1:]
    conv, norm = first.conv, first.norm
    convs = [layer.conv for layer in others]
    stacked = compile and all(layer.norm is None for layer in others)
    lead = 0
    if stacked:
        frames = frames_within(waveform.size(-1), conv.kernel_size[0], conv.stride[0])
        lead = rows_before(convs, frames, waveform)
    if group_norm is not None:
        x = folded_first_conv(waveform, *group_norm, conv.stride[0], lead)
    elif fast and norm is not None and can_fuse(waveform, conv.weight, conv.bias):
        x = fused_first_conv(
            waveform,
            conv.weight,
            (norm.weight, norm.bias, norm.eps),
            isinstance(norm, nn.GroupNorm),
            conv.stride[0],
            compile,
            lead,
        )
    else:
        return compiled(_run_layers, compile)(layers, waveform.unsqueeze(-1), fast)
    if stacked:
        return run_conv_stack(convs, x, lead)
    return compiled(_run_layers, compile)(others, x, fast)


def _run_layers(layers: Sequence[Any], x: Tensor, fast: bool) -> Tensor:
    for layer in layers:
        x = layer(x, conv_channels_last) if fast else layer(x)
    return x
