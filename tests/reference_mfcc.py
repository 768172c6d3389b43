"""MFCC as fairseq's dump_mfcc_feature.py makes them of torchaudio's."""

import torch
from torch import Tensor
from torchaudio.compliance import kaldi
from torchaudio.functional import compute_deltas


def reference_mfcc(waveform: Tensor) -> Tensor:
    """`[1, T]` float32 at 16 kHz to `[frames, 39]`: 13 coefficients, their deltas, and theirs."""
    plain = kaldi.mfcc(waveform, sample_frequency=16_000, use_energy=False).T
    deltas = compute_deltas(plain)
    return torch.cat([plain, deltas, compute_deltas(deltas)]).T.contiguous()
