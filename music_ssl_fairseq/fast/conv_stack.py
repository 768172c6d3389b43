"""Convolutions with channels last, and a stack of them without norms.

The stack is the extractor's layers after the first: convolutions and GELUs.

The gradient of a convolution's filters is, per tap, a matrix product over all its output frames.
cuBLAS computes these in three quarters of cuDNN's time. With kernel 3 and stride 2 they need no
copies if each crop's frames have one more row before them: row j of a crop's output then reads
rows 2j - 1, 2j and 2j + 1 of its input. The last two are row j of the input seen as `[B, Q, 2 C]`,
and the first is the second half of the row before. Row 0 of the output is no frame and has a
gradient of zero, so that products over all crops at once add nothing where two crops meet.

For cuDNN this is a convolution padded by one frame. The GELU leaves out its row 0, and writes the
row before the next layer's input. On Hopper GPUs our own kernel (`kernels.conv`) computes the
gradient of such a layer's input, and that of the GELU before it if the previous layer is of this
kind too.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from music_ssl_fairseq.fast.device import has_triton, is_hopper, weight_gradient, working_dtype
from music_ssl_fairseq.fast.gelu import kernel_gelu, suits_kernels
from music_ssl_fairseq.frames import FrameGrid, frames_within


def conv_channels_last(x: Tensor, weight: Tensor, bias: Tensor | None, stride: int) -> Tensor:
    """Convolve without padding, reading and writing channels last, without copies.

    With kernel = stride, windows are a reshaped view of the input: one matrix product. A single
    input channel is unfolded. Otherwise cuDNN convolves in its channels-last layout.

    Args:
        x: `[B, T, C]`.
        weight: `[channels, C, kernel]`.

    Returns:
        `[B, frames, channels]`.
    """
    dtype = working_dtype(x)
    x, weight = x.to(dtype), weight.to(dtype)
    batch, length, in_channels = x.shape
    kernel = weight.size(-1)
    frames = frames_within(length, kernel, stride)
    taps = weight.permute(2, 1, 0)  # [kernel, C, channels]
    if in_channels == 1:
        # Tensor cores need rows of a multiple of 8 numbers.
        extra = -kernel % 8
        windows = F.pad(x.squeeze(-1), (0, extra)).unfold(-1, kernel + extra, stride)[:, :frames]
        y = windows @ F.pad(taps.squeeze(1), (0, 0, 0, extra))
    elif kernel == stride:
        y = x[:, : frames * stride].reshape(batch, frames, -1) @ taps.flatten(0, 1)
    else:
        image = x.transpose(1, 2).unsqueeze(2)  # [B, C, 1, T], laid out as [B, 1, T, C]
        filters = weight.unsqueeze(2).contiguous(memory_format=torch.channels_last)
        y = F.conv2d(image, filters, None, (1, stride)).squeeze(2).transpose(1, 2)
    return y if bias is None else y + bias.to(dtype)


_KERNEL, _STRIDE, _PADDING = (1, 3), (1, 2), (0, 1)  # of `[B, C, 1, rows]`


def rows_before(convs: Sequence[nn.Conv1d], frames: int, x: Tensor) -> int:
    """Return how many rows of zeros, 1 or 0, a stack needs before each crop's first frame.

    The first convolution decides, on `frames` of input of the device and type of `x`.
    """
    if not convs:
        return 0
    conv = convs[0]
    # In fp32, cuDNN uses TF32 by default, and matrix products do not.
    slow = x.is_cuda and working_dtype(x) == torch.float32
    shape = (*conv.kernel_size, *conv.stride)
    fits = shape == (3, 2) and conv.bias is None and frames >= 3 and frames % 2 == 1
    return int(fits and not slow)


def can_use_kernel(z: Tensor, weight: Tensor) -> bool:
    """Return whether `kernels.conv` takes these: on a Hopper GPU, in half precision.

    Args:
        z: the convolution's input, or the input of the GELU before it, `[B, rows, C]`.
        weight: `[channels, C, 3]` of the convolution.
    """
    return (
        suits_kernels(z)
        and weight.size(0) % 64 == 0
        and weight.size(1) % 64 == 0
        and is_hopper(z.device)
        and has_triton()
    )


def run_conv_stack(convs: Sequence[nn.Conv1d], x: Tensor, lead: int) -> Tensor:
    """Run convolutions without padding, each with a GELU after it.

    Args:
        x: `[B, lead + frames, C]`.
        lead: rows of zeros before each crop's first frame: see `rows_before`.

    Returns:
        `[B, frames, channels]`.
    """
    with_gelu = False  # whether the GELU before a convolution is part of it
    for i, conv in enumerate(convs):
        if lead:
            x = _ConvAfterRow.apply(x, conv.weight, with_gelu)
        else:
            x = conv_channels_last(x, conv.weight, conv.bias, conv.stride[0])
        skip, frames = lead, x.size(1) - lead
        following = convs[i + 1 :]
        if following:
            # Without the frames that the next layer does not read.
            grid = FrameGrid(following[0].kernel_size[0], following[0].stride[0])
            frames = grid.num_samples(grid.num_frames(frames))
        lead = rows_before(following, frames, x)
        same_rows = skip == lead == 1 and lead + frames == x.size(1)
        with_gelu = same_rows and can_use_kernel(x, following[0].weight)
        if not with_gelu:
            x = kernel_gelu(x, frames, skip, lead)
    return x


class _ConvAfterRow(torch.autograd.Function):
    """Convolves with kernel 3 and stride 2 over frames that have a row of zeros before them.

    Maps `[B, 2 Q, C]` to `[B, Q, channels]`: Q - 1 frames, and before them a row to be left out,
    whose gradient must be zero. With a GELU, the input is the output of another such layer, and its
    gradient is zero in that row.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, with_gelu: bool) -> Tensor:
        filters = weight.unsqueeze(2).to(x.dtype, memory_format=torch.channels_last)
        z = None
        if with_gelu:
            from music_ssl_fairseq.fast.kernels import gelu as gelu_kernels

            z, x = x, gelu_kernels.forward(x, x.size(1) - 1, 1, 1)
        ctx.save_for_backward(x, filters, z)
        return _frames(F.conv2d(_image(x), filters, None, _STRIDE, _PADDING))

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        x, filters, z = ctx.saved_tensors
        grad = grad.contiguous()
        if can_use_kernel(x, filters):
            from music_ssl_fairseq.fast.kernels import conv as conv_kernels

            d_input = conv_kernels.input_gradient(grad, filters.squeeze(2), z)
        else:
            d_image, _, _ = torch.ops.aten.convolution_backward(
                _image(grad), _image(x), filters, None,
                _STRIDE, _PADDING, (1, 1), False, (0, 0), 1, (True, False, False),
            )  # fmt: skip
            d_input = _frames(d_image)
        return d_input, _filters_gradient(grad, x), None


def _image(x: Tensor) -> Tensor:
    """Map `[B, rows, C]` to `[B, C, 1, rows]`, for cuDNN in its channels-last layout."""
    return x.transpose(1, 2).unsqueeze(2)


def _frames(image: Tensor) -> Tensor:
    return image.squeeze(2).transpose(1, 2)


def _filters_gradient(grad: Tensor, x: Tensor) -> Tensor:
    """Compute `[channels, C, 3]` from `grad` `[B, Q, channels]` and `x` `[B, 2 Q, C]`."""
    channels = x.size(2)
    outputs = grad.view(-1, grad.size(2))
    inputs = x.view(-1, 2 * channels)
    before = weight_gradient(outputs[1:], inputs[:-1, channels:])
    return torch.stack([before, *weight_gradient(outputs, inputs).split(channels, 1)], -1)
