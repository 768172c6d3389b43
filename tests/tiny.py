"""Tiny models, ours and fairseq's, with the same weights."""

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import torch
from fairseq.data.dictionary import Dictionary
from omegaconf import OmegaConf
from torch import Tensor, nn

from music_ssl_fairseq.models.music2vec import Music2VecConfig, Music2VecModel
from music_ssl_fairseq.models.music_hubert import MusicHubertConfig, MusicHubertModel

SIZES: dict[str, Any] = {
    "conv_feature_layers": "[(24,10,5)] + [(24,3,2)] * 4 + [(24,2,2)] * 2",
    "encoder_layers": 3,
    "encoder_embed_dim": 32,
    "encoder_ffn_embed_dim": 64,
    "encoder_attention_heads": 4,
    "conv_pos_groups": 4,
}
NO_DROPOUT = {
    "dropout": 0.0,
    "attention_dropout": 0.0,
    "activation_dropout": 0.0,
    "dropout_input": 0.0,
    "encoder_layerdrop": 0.0,
}


def config(dataclass: type, **fields: Any) -> Any:
    """A fairseq dataclass as the model gets it at work: an OmegaConf node, resolved."""
    return OmegaConf.merge(OmegaConf.structured(dataclass()), fields)


def dictionary(k: int) -> Dictionary:
    """Units 0..k-1."""
    units = Dictionary()
    for unit in range(k):
        units.add_symbol(str(unit))
    return units


def music_hubert(*k: int, **fields: Any) -> MusicHubertModel:
    """`k`: units of each label set; one of 20 by default."""
    return music_hubert_of(k or (20,), **fields)


def music_hubert_of(k: Sequence[int], **fields: Any) -> MusicHubertModel:
    """`k`: units of each label set, of which there may be none."""
    cfg = config(MusicHubertConfig, **{**SIZES, **NO_DROPOUT, "final_dim": 16, **fields})
    return MusicHubertModel(cfg, [units + 4 for units in k])


def fairseq_hubert(*k: int, **fields: Any):
    from fairseq.models.hubert.hubert import HubertConfig, HubertModel

    fields = {**SIZES, **NO_DROPOUT, "final_dim": 16, "label_rate": 50.0, **fields}
    # untie_final_proj: as in fairseq's recipe; with one set of units it changes no shape.
    cfg = config(HubertConfig, **fields, untie_final_proj=True)
    dictionaries = [dictionary(units) for units in k or (20,)]
    model = HubertModel(cfg, SimpleNamespace(sample_rate=16000), dictionaries)
    model.cfg = cfg  # as the other models have it
    return model


def music2vec(*k: int, **fields: Any) -> Music2VecModel:
    """`k`: units of each label set, of which there are none by default."""
    sizes = {**SIZES, **NO_DROPOUT, "average_top_k_layers": 2, "final_dim": 16}
    return Music2VecModel(config(Music2VecConfig, **{**sizes, **fields}), [n + 4 for n in k])


def fairseq_data2vec(**fields: Any):
    from fairseq.examples.data2vec.models.data2vec_audio import (
        Data2VecAudioConfig,
        Data2VecAudioModel,
    )

    recipe = {
        "extractor_mode": "layer_norm",
        "conv_pos": 95,
        "pos_conv_depth": 5,
        "average_top_k_layers": 2,
        "instance_norm_target_layer": True,
        "ema_anneal_end_step": 30000,
        "max_update": 1000,
    }
    cfg = config(Data2VecAudioConfig, **{**SIZES, **NO_DROPOUT, **recipe, **fields})
    return Data2VecAudioModel(cfg)


def batch(crops: int = 3, seconds: float = 0.6, k: int = 20, seed: int = 0) -> dict[str, Tensor]:
    """Random waveforms with units `[B, F, 1]` and masks, for 50 frames per second."""
    generator = torch.Generator().manual_seed(seed)
    samples = int(16000 * seconds)
    frames = 1 + (samples - 400) // 320
    source = torch.randn(crops, samples, generator=generator)
    mask = torch.rand(crops, frames, generator=generator) < 0.5
    mask[:, 0], mask[:, 1] = True, False
    units = torch.randint(0, k, (crops, frames, 1), generator=generator)
    return {"source": source, "mask": mask, "units": units}


def assert_equal_gradients(ours: nn.Module, theirs: nn.Module, relative: float = 1e-4) -> None:
    """Of each parameter, the difference's norm is at most `relative` of the gradient's norm.

    The exception is the bias of attention's keys, on which attention does not depend: both
    gradients must be nothing but rounding, beside all the others.
    """
    expected = {name: parameter.grad for name, parameter in theirs.named_parameters()}
    found = {name: parameter.grad for name, parameter in ours.named_parameters()}
    assert set(found) == set(expected)
    whole = torch.stack([g.norm() for g in expected.values() if g is not None]).norm()
    for name, gradient in found.items():
        if expected[name] is None:  # layer_norm_first: the last norm is not in the loss's way
            assert gradient is None, name
        elif name.endswith("k_proj.bias"):
            assert max(gradient.norm(), expected[name].norm()) < 1e-9 * whole, name
        else:
            assert (gradient - expected[name]).norm() <= relative * expected[name].norm(), name
