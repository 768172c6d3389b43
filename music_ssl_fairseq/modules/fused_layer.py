"""A Transformer layer, normed after each sum, forward and backward with nothing left to the tape.

Between matrix products at the arithmetic's limit, a layer passes its activations through memory.
Written out, each kernel between two products reads and writes them once, gradients add up inside
the products, and the sums for biases fall off on the way.
"""

import importlib.util
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from music_ssl_fairseq.compat import WRITES_FP32
from music_ssl_fairseq.modules.fast import working_dtype

Weights = tuple[Tensor, ...]

_LONGEST = 256  # attention_kernels.LONGEST, known without triton
_HEAD_WIDTHS = (16, 32, 64, 128)


def can_fuse_layer(layer: Any, x: Tensor, attend: Tensor | None) -> bool:
    """Whether `fused_layer` takes these: crops of the same length, of at most 5 s, on a GPU.

    Longer ones need another kernel for attention, padded ones a mask. In fp32 the matrix products
    take so long that there is nothing to gain.
    """
    return (
        x.is_cuda
        and attend is None
        and working_dtype(x) in (torch.bfloat16, torch.float16)
        and x.size(1) <= _LONGEST
        and x.size(2) // layer.self_attn.heads in _HEAD_WIDTHS
        and not layer.layer_norm_first
        and not (layer.training and layer.activation_dropout.p > 0)
        and importlib.util.find_spec("triton") is not None
    )


def fused_layer(
    layer: Any, x: Tensor, seeds: Tensor | None, weights: Weights | None = None
) -> tuple[Tensor, Tensor]:
    """What `TransformerLayer.forward` computes, dropout included.

    Args:
        layer: a TransformerLayer that `can_fuse_layer` takes.
        x: `[B, T, D]`.
        seeds: `[3]` int32 (`draw_seeds`) for the attention's dropout and the two residuals'. None
            in evaluation mode.
        weights: the layer's of `cast_weights`, if that was called for many layers.

    Returns:
        The layer's output, and its feed-forward output, through which no gradient flows. Both
        `[B, T, D]`.
    """
    attention = layer.self_attn
    dropping = layer.training and seeds is not None
    if seeds is None:
        seeds = torch.zeros(3, dtype=torch.int32, device=x.device)
    x = x.to(working_dtype(x))
    norms = (layer.self_attn_layer_norm, layer.final_layer_norm)
    return _FusedLayer.apply(
        x,
        seeds,
        attention.heads,
        attention.dropout if dropping else 0.0,
        layer.dropout.p if dropping else 0.0,
        (norms[0].eps, norms[1].eps),
        weights or cast_weights([layer], x)[0],
        *(p for m in _linears(layer) for p in (m.weight, m.bias)),
        *(p for norm in norms for p in (norm.weight, norm.bias)),
    )


def _linears(layer: Any) -> tuple[nn.Linear, ...]:
    attention = layer.self_attn
    projections = (attention.q_proj, attention.k_proj, attention.v_proj)
    return (*projections, attention.out_proj, layer.fc1, layer.fc2)


@torch.no_grad()
def cast_weights(layers: Iterable[Any], x: Tensor) -> list[Weights]:
    """The weights of layers in the type in which products of `x` run.

    All are copied in one go: by themselves these are a hundred kernels too short to start.

    Returns:
        For each layer weight and bias of four products: of queries, keys and values, of the
        attention's output, and of the feed-forward network's first and second.
    """
    copies: list[Weights] = []
    targets: list[Tensor] = []
    sources: list[Tensor] = []
    for layer in layers:
        linears = _linears(layer)
        own = []
        for group in (linears[:3], *((linear,) for linear in linears[3:])):
            for parts in ([m.weight for m in group], [m.bias for m in group]):
                rows = len(parts) * parts[0].size(0)
                whole = torch.empty(
                    rows, *parts[0].shape[1:], dtype=working_dtype(x), device=x.device
                )
                own.append(whole)
                targets += whole.split(parts[0].size(0))
                sources += parts
        copies.append(tuple(own))
    torch._foreach_copy_(targets, sources)
    return copies


class _FusedLayer(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, seeds: Tensor, heads: int, p_attention: float, p: float,
        eps: tuple[float, float], weights: Weights, *parameters: Tensor,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        from music_ssl_fairseq.modules import attention_kernels, gelu_kernels, norm_kernels

        batch, frames, dim = x.shape
        norms = parameters[12:]
        w_qkv, b_qkv, w_out, b_out, w_in, b_in, w_ffn, b_ffn = weights
        x = x.reshape(-1, dim)
        qkv = torch.addmm(b_qkv, x, w_qkv.t())
        attended, logs = attention_kernels.forward(
            qkv.view(batch, frames, -1), heads, p_attention, seeds[0]
        )
        branch = torch.addmm(b_out, attended.view(-1, dim), w_out.t())
        first, middle = norm_kernels.forward(branch, x, norms[0], norms[1], eps[0], p, seeds[1])
        inner = torch.addmm(b_in, middle, w_in.t())
        active = gelu_kernels.forward(inner.unsqueeze(0), len(inner)).squeeze(0)
        branch = torch.addmm(b_ffn, active, w_ffn.t())
        second, output = norm_kernels.forward(
            branch, middle, norms[2], norms[3], eps[1], p, seeds[2]
        )
        ctx.save_for_backward(
            seeds, x, qkv, attended, logs, first, middle, inner, active, second,
            w_qkv, w_out, w_in, w_ffn, norms[0], norms[2],
        )  # fmt: skip
        ctx.settings = (heads, p_attention, p, eps)
        feed_forward = branch.view(batch, frames, dim)
        ctx.mark_non_differentiable(feed_forward)
        return output.view(batch, frames, dim), feed_forward

    @staticmethod
    def backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        from music_ssl_fairseq.modules import attention_kernels, gelu_kernels, norm_kernels

        (
            seeds, x, qkv, attended, logs, first, middle, inner, active, second,
            w_qkv, w_out, w_in, w_ffn, scale_1, scale_2,
        ) = ctx.saved_tensors  # fmt: skip
        heads, p_attention, p, eps = ctx.settings
        shape = grad.shape
        batch, frames, dim = shape
        sums = norm_kernels.parts(2, second)
        d_middle, d_branch = norm_kernels.backward(
            grad.reshape(-1, dim).contiguous(), None, second, scale_2, eps[1], p, seeds[2], sums[1]
        )
        d_w_ffn = _weight_gradient(d_branch, active)
        d_inner, d_b_in = gelu_kernels.backward_summed(inner, d_branch @ w_ffn)
        d_w_in = _weight_gradient(d_inner, middle)
        d_x, d_branch = norm_kernels.backward(
            d_middle, d_inner @ w_in, first, scale_1, eps[0], p, seeds[1], sums[0]
        )
        d_w_out = _weight_gradient(d_branch, attended.view(-1, dim))
        d_qkv, d_b_qkv = attention_kernels.backward(
            qkv.view(batch, frames, -1),
            attended,
            (d_branch @ w_out).view(batch, frames, dim),
            logs,
            heads,
            p_attention,
            seeds[0],
        )
        d_qkv = d_qkv.view(-1, 3 * dim)
        d_w_qkv = _weight_gradient(d_qkv, x)
        d_x.addmm_(d_qkv, w_qkv)
        weights = [*d_w_qkv.split(dim), d_w_out, d_w_in, d_w_ffn]
        norms = sums.sum(1)  # [2, 3, D]
        biases = [*d_b_qkv.split(dim), norms[0, 2], d_b_in, norms[1, 2]]
        pairs = [t for pair in zip(weights, biases, strict=True) for t in pair]
        return (d_x.view(shape), *[None] * 6, *pairs, *norms[:, :2].flatten(0, 1))


def _weight_gradient(grad: Tensor, x: Tensor) -> Tensor:
    """`grad.t() @ x` in fp32, as it is added up, if the device can write it so."""
    if grad.is_cuda and WRITES_FP32:
        return torch.mm(grad.t(), x, out_dtype=torch.float32)
    return (grad.t() @ x).float()
