"""Gradient of a weight: one matrix product over all frames of a batch."""

import torch
from torch import Tensor


def weight_gradient(grad: Tensor, x: Tensor) -> Tensor:
    """Compute `grad.t() @ x`, stored in fp32 as it is summed, if the device can.

    From the gradient of a layer's output `[N, outputs]` and its input `[N, inputs]` to
    `[outputs, inputs]`, in fp32 or the inputs' wider type.
    """
    if grad.is_cuda:
        return torch.mm(grad.t(), x, out_dtype=torch.float32)
    product = grad.t() @ x
    return product.to(torch.promote_types(product.dtype, torch.float32))
