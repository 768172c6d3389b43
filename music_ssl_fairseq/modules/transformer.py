"""The Transformer encoder that both families share (fairseq's names and mathematics)."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from music_ssl_fairseq.fast.cuda_graphs import recorded_layers
from music_ssl_fairseq.fast.device import compiled, working_dtype
from music_ssl_fairseq.fast.frame_selection import choose
from music_ssl_fairseq.fast.gelu import gelu
from music_ssl_fairseq.fast.hashed_dropout import draw_seeds, drop
from music_ssl_fairseq.fast.transformer_layer import can_fuse_layer, cast_weights, fused_layer
from music_ssl_fairseq.modules.positional_conv import PositionalConv


class SelfAttention(nn.Module):
    """Multi-head self-attention; three projections in the checkpoint, one product at work."""

    def __init__(self, dim: int, heads: int, dropout: float):
        super().__init__()
        self.heads = heads
        self.dropout = dropout
        self.q_proj = nn.Linear(dim, dim)
        self.k_proj = nn.Linear(dim, dim)
        self.v_proj = nn.Linear(dim, dim)
        self.out_proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor, attend: Tensor | None) -> Tensor:
        """`[B, T, D]` to `[B, T, D]`; `attend`: `[B, 1, 1, T]` bool, True where a key is real."""
        batch, frames, dim = x.shape
        projections = (self.q_proj, self.k_proj, self.v_proj)
        weight = torch.cat([p.weight for p in projections])
        bias = torch.cat([p.bias for p in projections])
        qkv = F.linear(x, weight, bias).view(batch, frames, 3, self.heads, dim // self.heads)
        query, key, value = qkv.permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(
            query, key, value, attend, self.dropout if self.training else 0.0
        )
        return self.out_proj(y.transpose(1, 2).reshape(batch, frames, dim))


class TransformerLayer(nn.Module):
    """Self-attention and a feed-forward network, normalised before or after each."""

    def __init__(
        self,
        dim: int,
        ffn_dim: int,
        heads: int,
        dropout: float,
        attention_dropout: float,
        activation_dropout: float,
        layer_norm_first: bool,
    ):
        super().__init__()
        self.layer_norm_first = layer_norm_first
        self.self_attn = SelfAttention(dim, heads, attention_dropout)
        self.self_attn_layer_norm = nn.LayerNorm(dim)
        self.fc1 = nn.Linear(dim, ffn_dim)
        self.fc2 = nn.Linear(ffn_dim, dim)
        self.final_layer_norm = nn.LayerNorm(dim)
        self.dropout = nn.Dropout(dropout)
        self.activation_dropout = nn.Dropout(activation_dropout)

    def forward(
        self, x: Tensor, attend: Tensor | None, seeds: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """One layer.

        Args:
            x: `[B, T, D]`.
            attend: `[B, 1, 1, T]` bool, True where a key is real, or None for all.
            seeds: `[3]` int32 for `hashed_dropout`, or None for torch's dropout. (The first is the
                attention's, of which only `fused_layer` makes use.)

        Returns:
            The layer's output and, before dropout and residual, its feed-forward output, which is
            what data2vec averages into its targets (section 3.3). Both `[B, T, D]`.
        """
        _, first, second = (None,) * 3 if seeds is None else seeds.unbind()
        if self.layer_norm_first:
            x = x + drop(self.dropout, self.self_attn(self.self_attn_layer_norm(x), attend), first)
            feed_forward = self._feed_forward(self.final_layer_norm(x))
            return x + drop(self.dropout, feed_forward, second), feed_forward
        x = _norm(
            self.self_attn_layer_norm, x + drop(self.dropout, self.self_attn(x, attend), first)
        )
        feed_forward = self._feed_forward(x)
        return _norm(
            self.final_layer_norm, x + drop(self.dropout, feed_forward, second)
        ), feed_forward

    @torch.no_grad()
    def scale_residual(self, factor: float) -> None:
        """Multiply the weights of what this layer adds to its input, to begin near the identity.

        A layer that is normed after its sums passes on little of its input's gradient where it adds
        much: twelve of them at fairseq's initial weights collapse at rates that these survive.
        """
        attention = self.self_attn
        for module in (attention.v_proj, attention.out_proj, self.fc1, self.fc2):
            module.weight.mul_(factor)

    def _feed_forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.activation_dropout(gelu(self.fc1(x))))


class TransformerEncoder(nn.Module):
    """Positional convolution, then Transformer layers.

    Differences from fairseq's, none of which changes a result:
    frames are not padded to an even number (`required_seq_len_multiple`), because the padding mask
    that this needs keeps attention off its fast kernels; and LayerDrop draws from torch's generator
    instead of numpy's, which fairseq never seeds or restores, so that a resumed run repeats.
    """

    def __init__(
        self,
        layers: list[TransformerLayer],
        pos_conv: PositionalConv,
        dim: int,
        dropout: float,
        layerdrop: float,
        layer_norm_first: bool,
        residual_init: float = 1.0,
    ):
        super().__init__()
        self.pos_conv = pos_conv
        self.layers = nn.ModuleList(layers)
        self.layer_norm = nn.LayerNorm(dim)
        self.dropout = nn.Dropout(dropout)
        self.layerdrop = layerdrop
        self.layer_norm_first = layer_norm_first
        for module in self.layers.modules():
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)
        for layer in layers:
            layer.scale_residual(residual_init)

    def forward(
        self,
        x: Tensor,
        padding_mask: Tensor | None = None,
        compile: bool = False,
        wanted: Tensor | None = None,
    ) -> tuple[Tensor, list[Tensor], list[Tensor]]:
        """Encode frames.

        Args:
            x: `[B, T, D]`.
            padding_mask: `[B, T]` bool, True where a frame is padding; None if there is none.
            compile: run each layer as `fused_layer` where that can, else as compiled kernels.
                (Layer by layer: LayerDrop chooses among them, and one compilation serves all.)
            wanted: `[N]` int64, ascending indices into `B * T` of the frames whose output is
                wanted, where not all are. `fused_layer` leaves out the others in the last layer.

        Returns:
            The encoder's output, `[B, T, D]` or that of the wanted frames `[N, D]`; the output of
            each layer that ran, first to last (of the last, perhaps, of the wanted frames); and,
            likewise, the feed-forward output of each (but not those of `fused_layer` where
            gradients are wanted). In training, LayerDrop leaves some layers out.
        """
        attend = None
        if padding_mask is not None:
            x = x.masked_fill(padding_mask.unsqueeze(-1), 0)
            attend = ~padding_mask[:, None, None, :]
        hidden_states, feed_forwards = [], []
        seeds: Sequence[Tensor | None] = [None] * (len(self.layers) + 1)
        drawn = None
        if compile and self.training:
            drawn = draw_seeds(3 * len(seeds), x.device).view(-1, 3)
            seeds = drawn.unbind()
        *layer_seeds, input_seeds = seeds
        x = compiled(_embed, compile)(self, x, input_seeds)
        run = self._runner(x, attend, drawn, wanted) if compile else _run_layer
        for layer, own_seeds in zip(self.layers, layer_seeds, strict=True):
            if self.training and self.layerdrop > 0 and torch.rand(()).item() < self.layerdrop:
                continue
            x, feed_forward = run(layer, x, attend, own_seeds)
            hidden_states.append(x)
            if feed_forward is not None:
                feed_forwards.append(feed_forward)
        if wanted is not None and x.dim() == 3:  # the last layer gave all, or was left out
            x = x.flatten(0, 1)[wanted]
        if self.layer_norm_first:
            x = self.layer_norm(x)
        return x, hidden_states, feed_forwards

    def _runner(
        self, x: Tensor, attend: Tensor | None, seeds: Tensor | None, wanted: Tensor | None
    ) -> Callable[..., Any]:
        """The fastest way to run layers on `x`, in training with the `seeds` of all."""
        if not can_fuse_layer(self.layers[0], x, attend):
            return compiled(_run_layer, True)
        chosen = None if wanted is None else choose(wanted, *x.shape[:2])
        if seeds is not None and torch.is_grad_enabled():
            recorded = recorded_layers(self, x, chosen)
            if recorded is not None:
                recorded.begin(seeds[:-1], chosen)
                numbers = {layer: i for i, layer in enumerate(self.layers)}
                return lambda layer, x, attend, seeds: (recorded(numbers[layer], x), None)
        last = self.layers[-1]
        weights = dict(zip(self.layers, cast_weights(self.layers, x), strict=True))
        return lambda layer, x, attend, seeds: fused_layer(
            layer, x, seeds, weights[layer], chosen if layer is last else None
        )


def _embed(encoder: TransformerEncoder, x: Tensor, seeds: Tensor | None) -> Tensor:
    """Add positions; normalise and drop."""
    x = x + encoder.pos_conv(x)
    if not encoder.layer_norm_first:
        x = _norm(encoder.layer_norm, x)
    return drop(encoder.dropout, x, None if seeds is None else seeds[0])


def _norm(norm: nn.LayerNorm, x: Tensor) -> Tensor:
    """A norm after a residual sum, passed on in the precision of the products.

    Under autocast a norm's output is fp32, twice as much to write and read for digits that the next
    product drops. What runs through all layers is normed here at each, so nothing adds up. (With
    layer_norm_first the sum itself runs through, and stays fp32.)
    """
    return norm(x).to(working_dtype(x))


def _run_layer(
    layer: nn.Module, x: Tensor, attend: Tensor | None, seeds: Tensor | None
) -> tuple[Tensor, Tensor]:
    return layer(x, attend, seeds)
