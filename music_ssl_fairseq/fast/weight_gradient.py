"""The gradient of a weight: one matrix product over all frames of a batch."""

import torch
from torch import Tensor

from music_ssl_fairseq.compat import WRITES_FP32


def weight_gradient(grad: Tensor, x: Tensor) -> Tensor:
    """`grad.t() @ x` in fp32, as it is added up, if the device can write it so.

    Args:
        grad: of the layer's output, `[N, outputs]`.
        x: its input, `[N, inputs]`.

    Returns:
        `[outputs, inputs]` in fp32, or wider as they are.
    """
    if grad.is_cuda and WRITES_FP32:
        return torch.mm(grad.t(), x, out_dtype=torch.float32)
    product = grad.t() @ x
    return product.to(torch.promote_types(product.dtype, torch.float32))
