"""What `product_kernels` computes, as a library's products and a kernel of GELU."""

import torch
from torch import Tensor

from music_ssl_fairseq.fast.kernels import gelu as gelu_kernels

parts = gelu_kernels.parts


def forward(
    x: Tensor, w: Tensor, bias: Tensor, with_kept: bool = True
) -> tuple[Tensor, Tensor | None]:
    """GELU of `x @ w.t() + bias`.

    Args:
        x: `[N, K]`.
        w: `[M, K]`.
        bias: `[M]`.
        with_kept: whether there is to be a `backward`.

    Returns:
        It, and what `backward` wants or None, `[N, M]` each.
    """
    inner = torch.addmm(bias, x, w.t())
    active = gelu_kernels.forward(inner.unsqueeze(0), inner.size(0)).squeeze(0)
    return active, inner if with_kept else None


def backward(grad: Tensor, w: Tensor, kept: Tensor, d_sums: Tensor) -> Tensor:
    """`(grad @ w)` times GELU's derivative: see `product_kernels.backward`."""
    return gelu_kernels.backward_summed(kept, grad @ w, d_sums)
