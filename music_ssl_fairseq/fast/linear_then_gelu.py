"""`kernels.linear_gelu` for other GPUs: a library's matrix product, then a kernel of GELU."""

import torch
from torch import Tensor

from music_ssl_fairseq.fast.kernels import gelu

parts = gelu.parts


def forward(x: Tensor, w: Tensor, bias: Tensor, keep: bool = True) -> tuple[Tensor, Tensor | None]:
    """Compute GELU of `x @ w.t() + bias`.

    From `[N, K]`, weights `[M, K]` and biases `[M]` to the result, and what `backward` needs if
    `keep`, else None: `[N, M]` each.
    """
    inner = torch.addmm(bias, x, w.t())
    active = gelu.forward(inner.unsqueeze(0), inner.size(0)).squeeze(0)
    return active, inner if keep else None


def backward(grad: Tensor, w: Tensor, kept: Tensor, d_sums: Tensor) -> Tensor:
    """Compute `(grad @ w)` times GELU's derivative: see `kernels.linear_gelu.backward`."""
    return gelu.backward_summed(kept, grad @ w, d_sums)
