"""GELU that takes no longer on GPUs than reading and writing its numbers."""

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

_LOG2_E = math.log2(math.e)


def gelu(x: Tensor) -> Tensor:
    """Apply GELU: `compiled_gelu` inside compiled functions, else torch's."""
    return compiled_gelu(x) if torch.compiler.is_compiling() else F.gelu(x)


def compiled_gelu(x: Tensor) -> Tensor:
    """Apply GELU in half as many operations as torch's; fp32 and wider get torch's.

    The error function is Abramowitz and Stegun's 7.1.26, off by 1.5e-7 at most, far below what
    bf16 and fp16 resolve. Torch's function has branches, and takes half as long again.
    """
    if x.dtype not in (torch.bfloat16, torch.float16):
        return F.gelu(x)
    return _Gelu.apply(x)


def kernel_gelu(x: Tensor, frames: int, skip: int = 0, lead: int = 0) -> Tensor:
    """Apply GELU to some frames, by our kernel for contiguous bf16 or fp16 on a GPU.

    It leaves out rows that the next layer does not read, and writes rows of zeros that the next
    layer needs before a crop's frames. Padding afterwards would copy the activations once in the
    forward pass and once in the backward pass.

    Args:
        x: `[B, T, D]`.
        frames: read per crop.
        skip: rows before them, which are not read.
        lead: rows of zeros to write before each crop's first frame.

    Returns:
        `[B, lead + frames, D]`.
    """
    if suits_kernels(x):
        return _KernelGelu.apply(x, frames, skip, lead)
    y = F.gelu(x[:, skip : skip + frames])
    return F.pad(y, (0, 0, lead, 0)) if lead else y


def suits_kernels(x: Tensor) -> bool:
    """Return whether our kernels take a tensor: contiguous bf16 or fp16 on a GPU."""
    return x.dtype in (torch.bfloat16, torch.float16) and x.is_cuda and x.is_contiguous()


class _KernelGelu(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, frames: int, skip: int, lead: int) -> Tensor:
        from music_ssl_fairseq.fast.kernels import gelu as gelu_kernels

        ctx.save_for_backward(x)
        ctx.rows = (skip, lead)
        return gelu_kernels.forward(x, frames, *ctx.rows)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        from music_ssl_fairseq.fast.kernels import gelu as gelu_kernels

        (x,) = ctx.saved_tensors
        return gelu_kernels.backward(x, grad.contiguous(), *ctx.rows), None, None, None


def _cdf_and_bell(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return the normal distribution's cumulative function at `x`, and exp(-x * x / 2)."""
    t = 1.0 / (1.0 + (0.3275911 * math.sqrt(0.5)) * x.abs())
    bell = torch.exp2(x * x * (-0.5 * _LOG2_E))
    series = 1.421413741 + t * (-1.453152027 + t * 1.061405429)
    tail = 0.5 * t * (0.254829592 + t * (-0.284496736 + t * series)) * bell
    return torch.where(x >= 0, 1.0 - tail, tail), bell


class _Gelu(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        u = x.float()
        return (u * _cdf_and_bell(u)[0]).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        u = x.float()
        cdf, bell = _cdf_and_bell(u)
        slope = cdf + u * bell * (1 / math.sqrt(2 * math.pi))
        return (grad.float() * slope).to(x.dtype)
