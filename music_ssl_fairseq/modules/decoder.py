"""The decoder of `model.encode: visible`: masked frames from visible ones (data2vec 2.0)."""

import torch
from torch import Tensor, nn

from music_ssl_fairseq.fast.dispatch import PLAIN, Execution, Packing, take, unpack
from music_ssl_fairseq.modules.dropout import Drop, drop
from music_ssl_fairseq.modules.positional_conv import ConvBlock


class Decoder(nn.Module):
    """Convolutions over all places of a crop (Baevski et al., arXiv 2212.07525, section 3.2).

    Visible places hold the encoder's outputs, `dim` wide, masked ones a learned token (fairseq:
    noise of deviation 0.01). It is fairseq's Decoder1d, whose last projection is the model's
    `final_proj`: `layers` convolutions of `kernel` frames, `width` wide, all but the first with a
    residual sum.
    """

    def __init__(
        self,
        dim: int,
        width: int,
        layers: int,
        kernel: int,
        groups: int,
        input_dropout: float,
        execution: Execution = PLAIN,
    ):
        super().__init__()
        self.input_dropout = nn.Dropout(input_dropout)
        self.blocks = nn.ModuleList(
            ConvBlock(width if i else dim, width, kernel, groups, execution) for i in range(layers)
        )

    def forward(
        self,
        x: Tensor,
        packing: Packing,
        mask: Tensor,
        mask_token: Tensor,
        padding: Tensor | None = None,
        masked_indices: Tensor | None = None,
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

        Returns:
            `[views, F, width]`, or `[N, width]`.
        """
        x = unpack(drop(self.input_dropout, x), packing)
        x = torch.where(mask.unsqueeze(-1), mask_token.to(x.dtype), x)
        for block in self.blocks:
            y = block(x)
            x = x + y if y.shape == x.shape else y
            if padding is not None:
                x = x.masked_fill(padding.unsqueeze(-1), 0)
        return x if masked_indices is None else take(x, masked_indices)
