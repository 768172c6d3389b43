"""A Transformer layer with norms after its sums: forward and backward, without autograd inside.

Between matrix products, a layer's time is that of reading and writing activations. Here each kernel
between two products reads and writes them once, gradients are added inside the products, and the
sums for biases are computed on the way.
"""

from collections.abc import Iterable, Sequence
from types import ModuleType
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from music_ssl_fairseq.fast.device import is_ampere, is_hopper, weight_gradient, working_dtype
from music_ssl_fairseq.fast.frame_selection import FrameSelection

Weights = tuple[Tensor, ...]

_HEAD_WIDTHS = (16, 32, 64)  # a block of wider heads does not fit a multiprocessor's registers


def can_fuse_layer(layer: Any, x: Tensor, attend: Tensor | None) -> bool:
    """Return whether `fused_layer` takes these: crops of equal length, at most 5 s, on a GPU.

    Longer crops need another attention kernel, padded ones a mask. In fp32 the matrix products
    dominate, and fusing gains nothing. The kernels need an Ampere GPU or later. Call this only
    where kernels can be compiled (`can_compile`).
    """
    if not (x.is_cuda and is_ampere(x.device)):
        return False
    from music_ssl_fairseq.fast.kernels.attention import MAX_FRAMES

    return (
        attend is None
        and working_dtype(x) in (torch.bfloat16, torch.float16)
        and x.size(1) <= MAX_FRAMES
        and x.size(2) // layer.self_attn.heads in _HEAD_WIDTHS
        and not layer.layer_norm_first
        and not (layer.training and layer.activation_dropout.p > 0)
    )


def fused_layer(
    layer: Any,
    x: Tensor,
    seeds: Tensor | None,
    weights: Weights,
    selection: FrameSelection | None = None,
) -> tuple[Tensor, Tensor | None]:
    """Run a layer with its dropout, for all frames or selected ones.

    Args:
        layer: a Transformer layer that `can_fuse_layer` takes.
        x: `[B, T, D]`.
        seeds: `[3]` int32 (`draw_seeds`) for the attention's dropout and the two residuals'. None
            in evaluation mode.
        weights: the layer's, from `CastWeights`.
        selection: N frames, or None for all.

    Returns:
        The layer's output `[B, T, D]`, or `[N, D]` for a selection; and, if gradients are disabled,
        its feed-forward output of the same shape, else None.
    """
    settings = layer_settings(layer, seeds is not None)
    if seeds is None:
        seeds = torch.zeros(3, dtype=torch.int32, device=x.device)
    x = x.to(working_dtype(x))
    norms = norm_parameters(layer)
    if not torch.is_grad_enabled():
        *_, feed_forward, output = forward_steps(
            x, seeds, settings, weights, norms, selection, keep=False
        )
        return _as_frames(output, x.shape, selection), _as_frames(feed_forward, x.shape, selection)
    tensors = (*weights, *norms, *linear_parameters(layer))
    return _FusedLayer.apply(x, seeds, settings, selection, *tensors), None


def _as_frames(rows: Tensor, shape: torch.Size, selection: FrameSelection | None) -> Tensor:
    return rows.view(shape) if selection is None else rows


class Settings(NamedTuple):
    """A layer's numbers apart from its weights; dropouts are 0 in evaluation mode."""

    heads: int
    p_attention: float
    p: float
    eps_1: float
    eps_2: float


def layer_settings(layer: Any, dropping: bool) -> Settings:
    """Read a layer's settings, with its dropouts if it is training and `dropping`."""
    dropping = dropping and layer.training
    return Settings(
        layer.self_attn.heads,
        layer.self_attn.dropout if dropping else 0.0,
        layer.dropout.p if dropping else 0.0,
        layer.self_attn_layer_norm.eps,
        layer.final_layer_norm.eps,
    )


def norm_parameters(layer: Any) -> Weights:
    """Return weight and bias of the first norm and of the second."""
    first, second = layer.self_attn_layer_norm, layer.final_layer_norm
    return first.weight, first.bias, second.weight, second.bias


def linear_parameters(layer: Any) -> list[Tensor]:
    """Return weight and bias of all linear maps, in the order of `backward_steps`' gradients."""
    return [p for m in _linears(layer) for p in (m.weight, m.bias)]


def _linears(layer: Any) -> tuple[nn.Linear, ...]:
    attention = layer.self_attn
    projections = (attention.q_proj, attention.k_proj, attention.v_proj)
    return (*projections, attention.out_proj, layer.fc1, layer.fc2)


class CastWeights:
    """Copies of layers' weights in the type in which products of `x` run.

    They are made together: a hundred launches become few.

    Attributes:
        of_layers: per layer, weight and bias of four products: queries, keys and values; the
            attention's output; the feed-forward network's first and second.
    """

    def __init__(self, layers: Iterable[Any], x: Tensor):
        groups: list[list[Tensor]] = []
        for layer in layers:
            linears = _linears(layer)
            products: list[tuple[nn.Linear, ...]] = [linears[:3], *((m,) for m in linears[3:])]
            for group in products:
                groups += [[m.weight for m in group], [m.bias for m in group]]
        sources = [p for own in groups for p in own]
        sizes = [p.numel() for p in sources]
        flat = torch.empty(sum(sizes), dtype=working_dtype(x), device=x.device)
        targets = [part.view_as(p) for part, p in zip(flat.split(sizes), sources, strict=True)]
        shapes = [(-1, *own[0].shape[1:]) for own in groups]
        joined = flat.split([sum(p.numel() for p in own) for own in groups])
        whole = [part.view(shape) for part, shape in zip(joined, shapes, strict=True)]
        self._sources, self._targets = sources, targets
        self.of_layers = [tuple(whole[i : i + 8]) for i in range(0, len(whole), 8)]
        self.refresh()

    @torch.no_grad()
    def refresh(self) -> None:
        """Copy the current weights."""
        torch._foreach_copy_(self._targets, self._sources)


def forward_steps(
    x: Tensor,
    seeds: Tensor,
    settings: Settings,
    weights: Weights,
    norms: Weights,
    selection: FrameSelection | None = None,
    keep: bool = True,
) -> tuple[Tensor, ...]:
    """Compute a layer; return all steps in order, the output last.

    Each step is `[B * T, ...]`, or for a selection, from the attention's output on, `[N, ...]`.
    Without `keep` they do not suffice for `backward_steps`.
    """
    from music_ssl_fairseq.fast.kernels import attention as attention_kernels
    from music_ssl_fairseq.fast.kernels import norm as norm_kernels

    batch, frames, dim = x.shape
    heads, p_attention, p, eps_1, eps_2 = settings
    w_qkv, b_qkv, w_out, b_out, w_in, b_in, w_ffn, b_ffn = weights
    x = x.reshape(-1, dim)
    qkv = torch.addmm(b_qkv, x, w_qkv.t())
    attended, logs = attention_kernels.forward(
        qkv.view(batch, frames, -1), heads, p_attention, seeds[0], selection
    )
    attended = attended.view(-1, dim)
    branch = torch.addmm(b_out, attended, w_out.t())
    masked_indices = None if selection is None else selection.masked_indices
    first, middle = norm_kernels.forward(
        branch, x, norms[0], norms[1], eps_1, p, seeds[1], masked_indices
    )
    active, inner = _linear_gelu(middle, w_in.size(0)).forward(middle, w_in, b_in, keep)
    branch = torch.addmm(b_ffn, active, w_ffn.t())
    second, output = norm_kernels.forward(branch, middle, norms[2], norms[3], eps_2, p, seeds[2])
    return x, qkv, attended, logs, first, middle, inner, active, second, branch, output


def kept_steps(
    seeds: Tensor, weights: Weights, norms: Weights, steps: tuple[Tensor, ...]
) -> tuple[Tensor, ...]:
    """Return the part of a forward pass that `backward_steps` needs."""
    return seeds, *weights[::2], norms[0], norms[2], *steps[:-2]


def backward_steps(
    grad: Tensor,
    shape: torch.Size,
    settings: Settings,
    kept: tuple[Tensor, ...],
    selection: FrameSelection | None = None,
) -> tuple[Tensor, list[Tensor]]:
    """Compute a layer's gradients.

    Args:
        grad: of the output, `[B, T, D]`, or `[N, D]` for a selection.
        shape: of the input, `[B, T, D]`.
        kept: see `kept_steps`.
        selection: as for `forward_steps`.

    Returns:
        The gradients of the input, `[B, T, D]`, and of `norm_parameters` and `linear_parameters`,
        float32.
    """
    from music_ssl_fairseq.fast.kernels import attention as attention_kernels
    from music_ssl_fairseq.fast.kernels import norm as norm_kernels
    from music_ssl_fairseq.fast.kernels import sum as sum_kernels

    (
        seeds, w_qkv, w_out, w_in, w_ffn, scale_1, scale_2,
        x, qkv, attended, logs, first, middle, inner, active, second,
    ) = kept  # fmt: skip
    heads, p_attention, p, eps_1, eps_2 = settings
    batch, frames, dim = shape
    masked_indices = None if selection is None else selection.masked_indices
    linear_gelu = _linear_gelu(middle, inner.size(1))
    shapes = [
        (norm_kernels.parts(len(inner)), 3 * dim),
        (norm_kernels.parts(len(inner)), 3 * dim),
        (attention_kernels.parts(batch, frames), 3 * dim),
        (linear_gelu.parts(len(inner)), inner.size(1)),
    ]
    sums, (sums_1, sums_2, sums_qkv, sums_in) = sum_kernels.allocate(shapes, x)
    d_middle, d_branch = norm_kernels.backward(
        grad.reshape(-1, dim).contiguous(), None, second, scale_2, eps_2, p, seeds[2], sums_2
    )
    d_w_ffn = weight_gradient(d_branch, active)
    d_inner = linear_gelu.backward(d_branch, w_ffn, inner, sums_in)
    d_w_in = weight_gradient(d_inner, middle)
    d_x, d_branch = norm_kernels.backward(
        d_middle, d_inner @ w_in, first, scale_1, eps_1, p, seeds[1], sums_1, masked_indices, len(x)
    )
    d_w_out = weight_gradient(d_branch, attended)
    d_qkv = attention_kernels.backward(
        qkv.view(batch, frames, -1),
        attended,
        d_branch @ w_out,
        logs,
        heads,
        p_attention,
        seeds[0],
        sums_qkv,
        selection,
    )
    d_qkv = d_qkv.view(-1, 3 * dim)
    d_w_qkv = weight_gradient(d_qkv, x)
    d_x.addmm_(d_qkv, w_qkv)
    *norms, d_b_qkv, d_b_in = sum_kernels.sum_rows(sums, shapes)
    (*d_norm_1, d_b_out), (*d_norm_2, d_b_ffn) = (both.split(dim) for both in norms)
    weights = [*d_w_qkv.split(dim), d_w_out, d_w_in, d_w_ffn]
    biases = [*d_b_qkv.split(dim), d_b_out, d_b_in, d_b_ffn]
    pairs = [t for pair in zip(weights, biases, strict=True) for t in pair]
    return d_x.view(shape), [*d_norm_1, *d_norm_2, *pairs]


class _FusedLayer(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        seeds: Tensor,
        settings: Settings,
        selection: FrameSelection | None,
        *tensors: Tensor,
    ) -> Tensor:
        weights, norms = tensors[:8], tensors[8:12]
        steps = forward_steps(x, seeds, settings, weights, norms, selection)
        ctx.save_for_backward(*kept_steps(seeds, weights, norms, steps))
        ctx.settings, ctx.selection, ctx.shape = settings, selection, x.shape
        return _as_frames(steps[-1], x.shape, selection)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        kept = ctx.saved_tensors
        d_x, gradients = backward_steps(grad, ctx.shape, ctx.settings, kept, ctx.selection)
        none = [None] * 11  # seeds, settings, selection, and the copies of the weights
        return (d_x, *none, *gradients)


def compile_layers_ahead(
    layers: Sequence[Any], x: Tensor, dropping: bool, selection: FrameSelection | None
) -> None:
    """Compile the kernels of layers in other threads, for passes like the present one.

    Args:
        layers: that `can_fuse_layer` takes.
        x: `[B, T, D]`.
        dropping: whether the passes have dropout. With gradients enabled, backward passes follow.
        selection: the frames needed of the last layer; None for all.
    """
    from music_ssl_fairseq.fast.kernels.launch import compile_ahead

    backward = torch.is_grad_enabled()
    weights = CastWeights(layers[:1], x).of_layers[0]
    settings, norms = layer_settings(layers[0], dropping), norm_parameters(layers[0])
    seeds = torch.zeros(3, dtype=torch.int32, device=x.device)
    x = x.detach().to(working_dtype(x))
    with compile_ahead(), torch.no_grad(), torch.autocast(x.device.type, enabled=False):
        for some in [None] if selection is None else [None, selection]:
            steps = forward_steps(x, seeds, settings, weights, norms, some, keep=backward)
            if backward:
                kept = kept_steps(seeds, weights, norms, steps)
                backward_steps(steps[-1], x.shape, settings, kept, some)


def _linear_gelu(x: Tensor, width: int) -> ModuleType:
    """Return the module that computes GELU of a product of `x` `[N, K]`, `width` wide."""
    if _can_fuse_linear_gelu(x, width):
        from music_ssl_fairseq.fast.kernels import linear_gelu

        return linear_gelu
    from music_ssl_fairseq.fast import linear_then_gelu

    return linear_then_gelu


def _can_fuse_linear_gelu(x: Tensor, width: int) -> bool:
    """Return whether `kernels.linear_gelu` takes `x` `[N, K]` and a product `width` wide.

    The rows of matrices must be whole 16 bytes, for the unit that copies their blocks.
    """
    return x.is_cuda and is_hopper(x.device) and x.size(1) % 8 == 0 and width % 8 == 0
