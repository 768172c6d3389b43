"""The extractor's layers after the first, where none has a norm: convolutions and GELUs.

The gradient of a convolution's filters is, for each tap, a matrix product over all its output
frames. For these cuBLAS takes three quarters of the time that cuDNN does. With kernel 3 and stride
2 they need no copies if each crop's frames have one more row before them: row j of a crop's output
then reads its input's rows 2j - 1, 2j and 2j + 1. The last two are row j of the input seen as
`[B, Q, 2 C]`, and the first is the second half of the row before that. Row 0 of the output is no
frame and has a gradient of zero, so that products over all crops at once, whose rows follow each
other, add nothing where two crops meet.

To cuDNN this is a convolution padded by one frame. GELU leaves its row 0 out, and writes the row
before the next layer's input. On Hopper GPUs the gradient of such a layer's input is a kernel of
our own (`conv_kernels`), with that of the GELU before it if the layer before is of this kind too.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from music_ssl_fairseq.fast.channels_last_conv import conv_channels_last
from music_ssl_fairseq.fast.device import has_triton, is_hopper, working_dtype
from music_ssl_fairseq.fast.gelu import kernel_gelu, suits_kernels
from music_ssl_fairseq.fast.weight_gradient import weight_gradient
from music_ssl_fairseq.frames import FrameGrid

_KERNEL, _STRIDE, _PADDING = (1, 3), (1, 2), (0, 1)  # of `[B, C, 1, rows]`


def rows_before(convs: Sequence[nn.Conv1d], frames: int, x: Tensor) -> int:
    """How many rows of zeros the first of some convolutions wants before each crop's first frame.

    Args:
        convs: those still to come.
        frames: of their input.
        x: a tensor of its device and type.

    Returns:
        1 or 0.
    """
    if not convs:
        return 0
    conv = convs[0]
    # In fp32 cuDNN computes with TF32, and matrix products do not unless told to.
    slow = x.is_cuda and working_dtype(x) == torch.float32
    shape = (*conv.kernel_size, *conv.stride)
    fits = shape == (3, 2) and conv.bias is None and frames >= 3 and frames % 2 == 1
    return int(fits and not slow)


def can_use_kernel(z: Tensor, weight: Tensor) -> bool:
    """Whether `conv_kernels.input_gradient` takes these: on a Hopper GPU, in half precision.

    Args:
        z: the convolution's input, or what is before the GELU before it, `[B, rows, C]`.
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
    """Each convolution, unpadded, and a GELU after it.

    Args:
        x: `[B, lead + frames, C]`.
        lead: rows of zeros before each crop's first frame: `rows_before`.

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
    """Convolution of kernel 3 and stride 2 over frames that have a row of zeros before them.

    From `[B, 2 Q, C]` to `[B, Q, channels]`: Q - 1 frames, and before them a row that is to be
    left out. The gradient of that row must be zero. With a GELU, it reads the output of another
    such layer, and its gradient is zero in that row.
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
    """`[B, rows, C]` to `[B, C, 1, rows]`, for cuDNN in its channels-last layout."""
    return x.transpose(1, 2).unsqueeze(2)


def _frames(image: Tensor) -> Tensor:
    return image.squeeze(2).transpose(1, 2)


def _filters_gradient(grad: Tensor, x: Tensor) -> Tensor:
    """`[channels, C, 3]`, of `grad` `[B, Q, channels]` and `x` `[B, 2 Q, C]`."""
    channels = x.size(2)
    outputs = grad.view(-1, grad.size(2))
    inputs = x.view(-1, 2 * channels)
    before = weight_gradient(outputs[1:], inputs[:-1, channels:])
    return torch.stack([before, *weight_gradient(outputs, inputs).split(channels, 1)], -1)
