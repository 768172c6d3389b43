"""The Transformer encoder that both models share (fairseq's names and mathematics)."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from music_ssl_fairseq.fast.dispatch import PLAIN, Execution, gelu, working_dtype
from music_ssl_fairseq.modules.dropout import Drop, drop
from music_ssl_fairseq.modules.encoder_config import AudioEncoderConfig
from music_ssl_fairseq.modules.positional_conv import PositionalConv
from music_ssl_fairseq.modules.views import Packing, pack


class SelfAttention(nn.Module):
    """Multi-head self-attention, whose three projections run as one product."""

    def __init__(self, dim: int, heads: int, dropout: float):
        super().__init__()
        self.heads = heads
        self.dropout = dropout
        self.q_proj = nn.Linear(dim, dim)
        self.k_proj = nn.Linear(dim, dim)
        self.v_proj = nn.Linear(dim, dim)
        self.out_proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor, attend: Tensor | None) -> Tensor:
        """Map `[B, T, D]` to the same; `attend`: `[B, 1, 1, T]` bool, True where a key is real."""
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

    def __init__(self, cfg: AudioEncoderConfig):
        super().__init__()
        dim, heads = cfg.encoder_embed_dim, cfg.encoder_attention_heads
        self.layer_norm_first = cfg.layer_norm_first
        self.self_attn = SelfAttention(dim, heads, cfg.attention_dropout)
        self.self_attn_layer_norm = nn.LayerNorm(dim)
        self.fc1 = nn.Linear(dim, cfg.encoder_ffn_embed_dim)
        self.fc2 = nn.Linear(cfg.encoder_ffn_embed_dim, dim)
        self.final_layer_norm = nn.LayerNorm(dim)
        self.dropout = nn.Dropout(cfg.dropout)
        self.activation_dropout = nn.Dropout(cfg.activation_dropout)

    def forward(self, x: Tensor, attend: Tensor | None, drop: Drop = drop) -> tuple[Tensor, Tensor]:
        """Run the layer.

        Args:
            x: `[B, T, D]`.
            attend: `[B, 1, 1, T]` bool, True where a key is real, or None for all.
            drop: applies dropout to the two residual branches, attention's first.

        Returns:
            The layer's output, and its feed-forward output before dropout and residual, which
            data2vec averages into its targets (section 3.3). Both `[B, T, D]`.
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
        """Multiply the weights of the residual branches, so that the layer begins near identity.

        With norms after its sums, a layer whose branches are large passes on little of its input's
        gradient. Twelve such layers collapse at learning rates that scaled ones survive.
        """
        attention = self.self_attn
        for module in (attention.v_proj, attention.out_proj, self.fc1, self.fc2):
            module.weight.mul_(factor)

    def _feed_forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.activation_dropout(gelu(self.fc1(x))))


class TransformerEncoder(nn.Module):
    """Positional convolution, then Transformer layers.

    Two differences from fairseq's change no result. Frames are not padded to an even number
    (`required_seq_len_multiple`), because attention with a padding mask is slow. LayerDrop draws
    from torch's generator, so that a resumed run repeats; fairseq never seeds or restores numpy's.
    """

    def __init__(self, cfg: AudioEncoderConfig):
        super().__init__()
        layers = [TransformerLayer(cfg) for _ in range(cfg.encoder_layers)]
        self.pos_conv = PositionalConv(cfg)
        self.layers = nn.ModuleList(layers)
        self.layer_norm = nn.LayerNorm(cfg.encoder_embed_dim)
        self.dropout = nn.Dropout(cfg.dropout)
        self.layerdrop = cfg.encoder_layerdrop
        self.layer_norm_first = cfg.layer_norm_first
        for module in self.layers.modules():
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)
                module.weight.layer_matrix = True  # type: ignore[attr-defined]  # see optim.muon
        for layer in layers:
            layer.scale_residual(cfg.residual_init)

    def forward(
        self,
        x: Tensor,
        padding_mask: Tensor | None = None,
        execution: Execution = PLAIN,
        masked_indices: Tensor | None = None,
        packing: Packing | None = None,
    ) -> tuple[Tensor, list[Tensor], list[Tensor]]:
        """Encode frames.

        Args:
            x: `[B, T, D]`.
            padding_mask: `[B, T]` bool, True where a frame is padding; None if there is none.
            execution: how operations run.
            masked_indices: `[N]` int64, ascending indices into `B * T`: return the output of these
                frames alone. None for all frames.
            packing: leave out all other frames once positions are added; None for all frames.

        Returns:
            The encoder's output: `[B, T, D]`, or `[N, D]` of the masked frames, or `[B, K, D]` of
            packed ones. Each layer's output (its input, if LayerDrop leaves it out); the last may
            be `[N, D]`. The feed-forward outputs of the layers that ran, without those of fused
            layers with gradients.
        """
        attend = None
        if padding_mask is not None:
            x = x.masked_fill(padding_mask.unsqueeze(-1), 0)
            real = ~padding_mask if packing is None else packing.frames >= 0
            attend = real[:, None, None, :]
        layer_outputs, feed_forwards = [], []
        # The plain execution calls `self.embed`, and then each layer as it is.
        x, run_layer = execution.begin_layers(self, x, attend, masked_indices, packing)
        for layer in self.layers:
            dropped = (
                self.training and self.layerdrop > 0 and torch.rand(()).item() < self.layerdrop
            )
            if not dropped:
                x, feed_forward = run_layer(layer, x)
                if feed_forward is not None:
                    feed_forwards.append(feed_forward)
            layer_outputs.append(x)
        if masked_indices is not None and x.dim() == 3:  # the last layer was plain, or left out
            x = x.flatten(0, 1)[masked_indices]
        if self.layer_norm_first:
            x = self.layer_norm(x)
        return x, layer_outputs, feed_forwards

    def embed(
        self,
        x: Tensor,
        packing: Packing | None = None,
        execution: Execution = PLAIN,
        drop: Drop = drop,
    ) -> Tensor:
        """Add positions to `[B, T, D]`, and pack; normalise and drop."""
        x = x + self.pos_conv(x, execution)
        if packing is not None:
            x = pack(x, packing)
        if not self.layer_norm_first:
            x = _norm(self.layer_norm, x)
        return drop(self.dropout, x)


def _norm(norm: nn.LayerNorm, x: Tensor) -> Tensor:
    """Normalise a residual sum; return it in the precision of the products.

    Under autocast a norm's output is fp32, twice as much to write and read for digits that the next
    product drops. Each layer normalises the sum again, so rounding errors do not add up. (With
    layer_norm_first the sum itself runs through all layers, and stays fp32.)
    """
    return norm(x).to(working_dtype(x))
