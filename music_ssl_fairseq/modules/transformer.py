"""The Transformer encoder that both families share (fairseq's names and mathematics)."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from music_ssl_fairseq.fast.dispatch import PLAIN, Execution, gelu, working_dtype
from music_ssl_fairseq.modules.dropout import Drop, drop
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

    def forward(self, x: Tensor, attend: Tensor | None, drop: Drop = drop) -> tuple[Tensor, Tensor]:
        """Run the layer.

        Args:
            x: `[B, T, D]`.
            attend: `[B, 1, 1, T]` bool, True where a key is real, or None for all.
            drop: applies the two residual branches' dropout, attention's first.

        Returns:
            The layer's output and, before dropout and residual, its feed-forward output, which is
            what data2vec averages into its targets (section 3.3). Both `[B, T, D]`.
        """
        if self.layer_norm_first:
            x = x + drop(self.dropout, self.self_attn(self.self_attn_layer_norm(x), attend))
            feed_forward = self._feed_forward(self.final_layer_norm(x))
            return x + drop(self.dropout, feed_forward), feed_forward
        x = _norm(self.self_attn_layer_norm, x + drop(self.dropout, self.self_attn(x, attend)))
        feed_forward = self._feed_forward(x)
        return _norm(self.final_layer_norm, x + drop(self.dropout, feed_forward)), feed_forward

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
        execution: Execution = PLAIN,
        masked_indices: Tensor | None = None,
    ) -> tuple[Tensor, list[Tensor], list[Tensor]]:
        """Encode frames.

        Args:
            x: `[B, T, D]`.
            padding_mask: `[B, T]` bool, True where a frame is padding; None if there is none.
            execution: how layers run, one by one, because LayerDrop chooses among them.
            masked_indices: `[N]` int64, ascending indices into `B * T`, where the output of these
                frames is all that is needed. None for all frames.

        Returns:
            The encoder's output, `[B, T, D]`, or `[N, D]` of the masked frames; the output of each
            layer that ran, first to last (of the last, perhaps, of the masked frames alone); and,
            likewise, the feed-forward output of each (but not those of fused layers where
            gradients are needed). In training, LayerDrop leaves some layers out.
        """
        attend = None
        if padding_mask is not None:
            x = x.masked_fill(padding_mask.unsqueeze(-1), 0)
            attend = ~padding_mask[:, None, None, :]
        hidden_states, feed_forwards = [], []
        x, run_layer = execution.encode(self, x, attend, masked_indices)
        for layer in self.layers:
            if self.training and self.layerdrop > 0 and torch.rand(()).item() < self.layerdrop:
                continue
            x, feed_forward = run_layer(layer, x)
            hidden_states.append(x)
            if feed_forward is not None:
                feed_forwards.append(feed_forward)
        if masked_indices is not None and x.dim() == 3:  # the last layer gave all, or was left out
            x = x.flatten(0, 1)[masked_indices]
        if self.layer_norm_first:
            x = self.layer_norm(x)
        return x, hidden_states, feed_forwards

    def embed(self, x: Tensor, drop: Drop = drop) -> Tensor:
        """Add positions to `[B, T, D]`; normalise and drop."""
        x = x + self.pos_conv(x)
        if not self.layer_norm_first:
            x = _norm(self.layer_norm, x)
        return drop(self.dropout, x)


def _norm(norm: nn.LayerNorm, x: Tensor) -> Tensor:
    """A norm after a residual sum, passed on in the precision of the products.

    Under autocast a norm's output is fp32, twice as much to write and read for digits that the next
    product drops. What runs through all layers is normed here at each, so nothing adds up. (With
    layer_norm_first the sum itself runs through, and stays fp32.)
    """
    return norm(x).to(working_dtype(x))
