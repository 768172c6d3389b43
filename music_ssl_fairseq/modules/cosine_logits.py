"""Scores of units (HuBERT, equation 3) as one matrix product, without parameters."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class CosineLogits(nn.Module):
    """Cosine similarity of frames and unit embeddings, divided by a temperature.

    fairseq builds a tensor `[units + 1, frames, D]` with the true unit first and all units behind
    it as negatives, and excludes the negative that equals the true one. Its cross-entropy equals
    that over the units, which needs no such tensor: 60 GB at 2000 units and 25 crops of 5 s.
    """

    def __init__(self, temperature: float):
        super().__init__()
        self.temperature = temperature

    def forward(self, frames: Tensor, units: Tensor) -> Tensor:
        """Map `[N, D]` and `[K, D]` to logits `[N, K]`, always in float32."""
        with torch.autocast(frames.device.type, enabled=False):
            # The epsilon of fairseq's cosine_similarity.
            frames = F.normalize(frames.float(), dim=-1, eps=1e-8)
            # Divide units, because there are fewer of them than of scores.
            units = F.normalize(units.float(), dim=-1, eps=1e-8) / self.temperature
            return frames @ units.t()
