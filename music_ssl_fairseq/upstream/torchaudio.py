"""Read and write torchaudio's HuBERT and wav2vec 2.0 (`torchaudio.models.Wav2Vec2Model`).

torchaudio stores tensors alone. Other settings come from SETTINGS, a JSON file of the arguments of
`torchaudio.models.wav2vec2_model` that our export writes beside them; without it, from the models
of torchaudio: hubert_base, hubert_large, hubert_xlarge and its wav2vec 2.0 models.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from music_ssl_fairseq.errors import InputError
from music_ssl_fairseq.frames import parse_conv_layers
from music_ssl_fairseq.runtime.texts import read_object
from music_ssl_fairseq.runtime.user_command import with_option
from music_ssl_fairseq.upstream import hugging_face
from music_ssl_fairseq.upstream.contents import Contents, architecture

SETTINGS = "wav2vec2_model.json"

_MASK = {"mask_generator.mask_embedding": "masked_spec_embed"}
# torchaudio's prefix, transformers'. The rest of a name is the same.
_PREFIXES = {
    "encoder.feature_projection.": "feature_projection.",
    "encoder.transformer.": "encoder.",
}
_MODES = {"default": "group_norm", "layer_norm": "layer_norm"}
# Our field: argument of wav2vec2_model.
_ARGUMENTS = {
    "conv_bias": "extractor_conv_bias",
    "encoder_embed_dim": "encoder_embed_dim",
    "encoder_layers": "encoder_num_layers",
    "encoder_ffn_embed_dim": "encoder_ff_interm_features",
    "encoder_attention_heads": "encoder_num_heads",
    "layer_norm_first": "encoder_layer_norm_first",
    "conv_pos": "encoder_pos_conv_kernel",
    "conv_pos_groups": "encoder_pos_conv_groups",
}
_DROPOUTS = {
    "dropout_input": "encoder_projection_dropout",
    "attention_dropout": "encoder_attention_dropout",
    "activation_dropout": "encoder_ff_interm_dropout",
    "dropout": "encoder_dropout",
    "encoder_layerdrop": "encoder_layer_drop",
}
# torchaudio's models have these attention heads by width, and one extractor.
_HEADS = {768: 12, 1024: 16, 1280: 16}
_KERNELS, _STRIDES = (10, 3, 3, 3, 3, 2, 2), (5, 2, 2, 2, 2, 2, 2)


def from_state_dict(loaded: Any, path: Path) -> Contents:
    """Return the encoder in a state dict of torchaudio's Wav2Vec2Model or HuBERTPretrainModel.

    Normalisation is not stored: as in torchaudio's bundles, waveforms are normalised for layer
    norms in the extractor, not for a group norm.

    Raises InputError if it is no such state dict, or of a model whose settings are not known.
    """
    names = loaded if isinstance(loaded, Mapping) else {}
    tensors = {n.removeprefix("wav2vec2."): t for n, t in names.items() if isinstance(t, Tensor)}
    if not any(name.startswith("encoder.transformer.") for name in tensors):
        raise InputError(
            f"{path}: neither a fairseq checkpoint nor a state dict of torchaudio's HuBERT"
        )
    layer_norms = "feature_extractor.conv_layers.1.layer_norm.weight" in tensors
    renamed = {_MASK.get(n, _renamed(n, _PREFIXES)): tensor for n, tensor in tensors.items()}
    state = hugging_face.encoder_state(renamed, layer_norms)
    hugging_face.drop_identity(state)
    settings = path.with_name(SETTINGS)
    fields = _stored(settings) if settings.is_file() else _infer_settings(state, layer_norms, path)
    return Contents(
        family="hubert",
        config=architecture(fields, str(path)),
        state=state,
        normalise=layer_norms,
        origin=str(path),
    )


def to_state(contents: Contents) -> dict[str, Tensor]:
    """Return the encoder's tensors under the names of torchaudio's Wav2Vec2Model, float32."""
    state = {}
    for name, tensor in hugging_face.to_state(contents).items():
        if name not in _MASK.values():
            state[_renamed(name, {theirs: ours for ours, theirs in _PREFIXES.items()})] = tensor
    return state


def to_arguments(contents: Contents, training: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments of `torchaudio.models.wav2vec2_model` that build the encoder.

    Dropouts come from the model's settings in `training`, if known.

    Raises InputError if torchaudio has no model of this shape.
    """
    config = contents.config
    if config["pos_conv_depth"] != 1:
        raise InputError(
            f"torchaudio has no model with pos_conv_depth={config['pos_conv_depth']}, which "
            "data2vec and music2vec have: choose another --format",
            with_option("--format", "huggingface"),
        )
    return {
        "extractor_mode": _MODES[config["extractor_mode"]],
        "extractor_conv_layer_config": parse_conv_layers(config["conv_feature_layers"]),
        **{theirs: config[ours] for ours, theirs in _ARGUMENTS.items()},
        **{theirs: training.get(ours, 0.0) for ours, theirs in _DROPOUTS.items()},
        "aux_num_out": None,
    }


def _renamed(name: str, prefixes: Mapping[str, str]) -> str:
    prefix = next((prefix for prefix in prefixes if name.startswith(prefix)), "")
    return prefixes.get(prefix, "") + name.removeprefix(prefix)


def _stored(path: Path) -> dict[str, Any]:
    modes = {theirs: ours for ours, theirs in _MODES.items()}
    try:
        arguments = read_object(path)
        layers = [tuple(layer) for layer in arguments["extractor_conv_layer_config"]]
        return {
            "extractor_mode": modes[arguments["extractor_mode"]],
            "conv_feature_layers": str(layers),
            **{ours: arguments[theirs] for ours, theirs in _ARGUMENTS.items()},
        }
    except (KeyError, TypeError) as error:
        raise InputError(f"{path}: not arguments of wav2vec2_model ({error!r})") from None


def _infer_settings(state: Mapping[str, Tensor], layer_norms: bool, path: Path) -> dict[str, Any]:
    weights = [
        tensor
        for name, tensor in state.items()
        if name.startswith("feature_extractor.") and name.endswith(".0.weight")
    ]
    kernels = tuple(weight.size(-1) for weight in weights)
    positions = state.get("encoder.pos_conv.0.weight_v")
    dim = positions.size(0) if positions is not None else 0
    if positions is None or kernels != _KERNELS or dim not in _HEADS:
        raise InputError(
            f"{path}: none of torchaudio's models (width {dim}, extractor kernels {kernels}); put "
            f"the arguments of wav2vec2_model beside it, as {SETTINGS}"
        )
    channels = (weight.size(0) for weight in weights)
    return {
        "extractor_mode": "layer_norm" if layer_norms else "default",
        "conv_feature_layers": str(list(zip(channels, _KERNELS, _STRIDES, strict=True))),
        "conv_bias": "feature_extractor.conv_layers.0.0.bias" in state,
        "encoder_embed_dim": dim,
        "encoder_layers": sum(name.endswith(".fc1.weight") for name in state),
        "encoder_ffn_embed_dim": state["encoder.layers.0.fc1.weight"].size(0),
        "encoder_attention_heads": _HEADS[dim],
        # In all of torchaudio's models the two go together.
        "layer_norm_first": layer_norms,
        "conv_pos": positions.size(-1),
        "conv_pos_groups": dim // positions.size(1),
    }
