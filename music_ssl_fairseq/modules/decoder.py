"""The decoder of `model.encode: visible`: masked frames from visible ones (data2vec 2.0)."""

from itertools import pairwise

import torch
from torch import Tensor, nn

from music_ssl_fairseq.fast.dispatch import PLAIN, Execution
from music_ssl_fairseq.modules.dropout import Drop, drop
from music_ssl_fairseq.modules.encoder_config import AudioEncoderConfig
from music_ssl_fairseq.modules.positional_conv import ConvBlock
from music_ssl_fairseq.modules.views import Packing, take, unpack


class Decoder(nn.Module):
    """Convolutions over all places of a crop (Baevski et al., arXiv 2212.07525, section 3.2).

    Visible places hold the encoder's outputs, masked ones a learned token (fairseq: noise of
    deviation 0.01). It is fairseq's Decoder1d, whose last projection is the model's `final_proj`:
    `decoder_layers` convolutions, all but the first with a residual sum.
    """

    def __init__(self, cfg: AudioEncoderConfig):
        super().__init__()
        self.input_dropout = nn.Dropout(cfg.decoder_input_dropout)
        widths = [cfg.encoder_embed_dim] + [cfg.decoder_dim] * cfg.decoder_layers
        self.blocks = nn.ModuleList(
            ConvBlock(dim, width, cfg.decoder_kernel, cfg.decoder_groups)
            for dim, width in pairwise(widths)
        )

    def forward(
        self,
        x: Tensor,
        packing: Packing,
        mask: Tensor,
        mask_token: Tensor,
        padding: Tensor | None = None,
        masked_indices: Tensor | None = None,
        execution: Execution = PLAIN,
        drop: Drop = drop,
    ) -> Tensor:
        """Fill the places of a mask.

        Args:
            x: `[views, K, D]`, the encoder's outputs.
            packing: where these frames lie.
            mask: `[views, F]` bool, True for masked frames.
            mask_token: `[D]`.
            padding: `[views, F]` bool, True for padding, which stays zero; or None.
            masked_indices: `[N]` ascending indices into `views * F`: return these frames alone.
                None for all.
            execution: how operations run.
            drop: applies dropout.

        Returns:
            `[views, F, decoder_dim]`, or `[N, decoder_dim]`.
        """
        x = unpack(drop(self.input_dropout, x), packing)
        x = torch.where(mask.unsqueeze(-1), mask_token.to(x.dtype), x)
        for block in self.blocks:
            y = block(x, execution)
            x = x + y if y.shape == x.shape else y
            if padding is not None:
                x = x.masked_fill(padding.unsqueeze(-1), 0)
        return x if masked_indices is None else take(x, masked_indices)
