"""Units without K-means: frames through a frozen random projection, to the nearest of random codes.

BEST-RQ (Chiu et al., arXiv 2202.01855, section 3.1); on music MusicFM (Won et al., 2311.03318).
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

CODE_DIM = 16
"""Dimension in which frames and codes are compared (BEST-RQ, section 4)."""


class RandomProjection(nn.Module):
    """Map waveforms to units. Weights are drawn once, stored with the model and never trained.

    Bands are brought to mean 0 and variance 1 over the batch, and in evaluation over all batches
    so far: without that, most frames fall to a few codes (BEST-RQ, section 3.1).
    """

    projection: Tensor
    codes: Tensor

    def __init__(self, features: nn.Module, sets: int, size: int):
        """Draw `sets` projections of `features`, each with its own `size` codes and units.

        `features` maps `[B, T]` to `[B, frames, bands]`, and has an attribute `bands`.
        """
        super().__init__()
        self.features = features
        bands = int(features.bands)  # type: ignore[arg-type]
        self.norm = nn.BatchNorm1d(bands, affine=False, momentum=None)
        self.register_buffer(
            "projection", nn.init.xavier_uniform_(torch.empty(sets, bands, CODE_DIM))
        )
        self.register_buffer("codes", F.normalize(torch.randn(sets, size, CODE_DIM), dim=-1))

    @torch.no_grad()
    def forward(self, waveform: Tensor) -> Tensor:
        """Map `[B, T]` to units `[B, frames, sets]`, int64 in [0, size)."""
        with torch.autocast(waveform.device.type, enabled=False):
            levels = self.features(waveform)
            levels = self.norm(levels.flatten(0, 1)).unflatten(0, levels.shape[:2])
            # The direction alone decides, because codes have length 1.
            scores = torch.einsum("bfd,sdc,snc->bfsn", levels, self.projection, self.codes)
        return scores.argmax(-1)
