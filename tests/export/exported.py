"""Checkpoints of tiny models to export, and the command."""

from pathlib import Path
from typing import Any

import torch

from music_ssl_fairseq.export.__main__ import main
from tests import checkpoints, tiny

FIRST = {"layer_norm_first": True, "extractor_mode": "layer_norm"}
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "music_hubert": ("music_hubert", {}),
    "music_hubert, layer_norm_first": ("music_hubert", {**FIRST, "conv_bias": True}),
    "music_hubert, equal widths": ("music_hubert", {"encoder_embed_dim": 24}),
    "music_hubert, two convolutions": (
        "music_hubert",
        {"extractor_mode": "layer_norm", "conv_feature_layers": "[(32,400,160)] + [(24,2,2)]"},
    ),
    "music2vec": ("music2vec", {"dropout": 0.1, "encoder_layerdrop": 0.05}),
    # transformers has no stack of positional convolutions in this order of norms.
    "music2vec, layer_norm_first": (
        "music2vec",
        {"layer_norm_first": True, "pos_conv_depth": 1, "conv_pos": 128},
    ),
}
"""Family and settings."""


def checkpoint(path: Path, family: str, **fields: Any) -> Path:
    """A checkpoint of a model all of whose weights have moved from where they started."""
    torch.manual_seed(3)
    model = checkpoints.MODELS[family](**fields)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.05 * torch.randn_like(parameter)
    if family == "music2vec":
        model.set_num_updates(0)
        model.teacher.model.layers[0].fc1.weight += 1.0
    history = [{"num_updates": 1500}]
    normalize = str(model.cfg.extractor_mode) == "layer_norm"
    return checkpoints.write(path, family, model, normalize, optimizer_history=history)


def export(source: Path, to: Path, *options: str) -> Path:
    """`python -m music_ssl_fairseq export --checkpoint SOURCE --to TO OPTIONS`, which succeeds."""
    assert main(["--checkpoint", str(source), "--to", str(to), *options]) == 0
    return to


def padded(samples: tuple[int, ...] = (9_600, 7_001, 3_333)) -> tuple[torch.Tensor, torch.Tensor]:
    """Waveforms `[B, T]`, 0 where padded, and `[B, T]` bool, True for padding."""
    source = tiny.batch(crops=len(samples), seconds=max(samples) / 16_000)["source"]
    padding = torch.arange(source.size(1)) >= torch.tensor(samples)[:, None]
    return source.masked_fill(padding, 0.0), padding
