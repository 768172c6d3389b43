"""Translate an encoder's settings from and to transformers' config.json."""

from collections.abc import Mapping
from typing import Any

from music_ssl_fairseq.errors import InputError
from music_ssl_fairseq.frames import parse_conv_layers
from music_ssl_fairseq.upstream.contents import FAMILIES, Contents, architecture

OWN = "music_ssl_fairseq"
"""Key of config.json for settings that transformers does not have; it keeps and ignores them. Also
the model_type of encoders that no model of transformers is: their tensors have our names."""

TYPES = {
    "hubert": ("hubert", "hubert.", "HubertModel"),
    "wav2vec2": ("wav2vec2", "wav2vec2.", "Wav2Vec2Model"),
    "data2vec-audio": ("data2vec_audio", "data2vec_audio.", "Data2VecAudioModel"),
}
"""model_type: our family, the prefix of the encoder in models with a head, and the class."""

# Our field: transformers' field and its default there.
_FIELDS = {
    "conv_bias": ("conv_bias", False),
    "encoder_layers": ("num_hidden_layers", 12),
    "encoder_embed_dim": ("hidden_size", 768),
    "encoder_ffn_embed_dim": ("intermediate_size", 3072),
    "encoder_attention_heads": ("num_attention_heads", 12),
    "conv_pos_groups": ("num_conv_pos_embedding_groups", 16),
}
# For fine-tuning, as in training.
_DROPOUTS = {
    "dropout": "hidden_dropout",
    "attention_dropout": "attention_dropout",
    "activation_dropout": "activation_dropout",
    "dropout_input": "feat_proj_dropout",
    "encoder_layerdrop": "layerdrop",
    "mask_length": "mask_time_length",
}
# Settings of transformers for which this package's encoder has one value only.
_REQUIRED = {
    "hidden_act": "gelu",
    "feat_extract_activation": "gelu",
    "layer_norm_eps": 1e-5,
    "feat_proj_layer_norm": True,
    "conv_pos_batch_norm": False,
    "adapter_attn_dim": None,
}
# Those of them that each of the models has.
_COMMON = ("hidden_act", "feat_extract_activation", "layer_norm_eps")
_EXTRACTORS = {"default": "group", "layer_norm": "layer"}


def from_config(config: Mapping[str, Any], origin: str) -> tuple[str, dict[str, Any]]:
    """Return family and architecture (a value per field of ARCHITECTURE) of a config.json.

    Raises InputError if it is another architecture; it names the file, `origin`.
    """
    model_type, own = config.get("model_type"), config.get(OWN) or {}
    if model_type == OWN:
        if not _is_noted(own):
            raise InputError(f"{origin}: {OWN} is not an object with a family and a config")
        return own["family"], architecture(own["config"], origin)
    if not isinstance(model_type, str) or model_type not in TYPES:
        raise InputError(
            f"{origin}: model_type {model_type!r} is another architecture than {', '.join(TYPES)}"
        )
    for name, wanted in _REQUIRED.items():
        if config.get(name, wanted) != wanted:
            raise InputError(
                f"{origin}: another architecture: {name} is {config[name]!r}, not {wanted!r}"
            )
    fields = {name: config.get(theirs, default) for name, (theirs, default) in _FIELDS.items()}
    try:
        dims = config.get("conv_dim", [512] * 7)
        kernels = config.get("conv_kernel", [10, 3, 3, 3, 3, 2, 2])
        strides = config.get("conv_stride", [5, 2, 2, 2, 2, 2, 2])
        fields["conv_feature_layers"] = str(list(zip(dims, kernels, strides, strict=True)))
        fields |= _stack(config) if model_type == "data2vec-audio" else _single(config)
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise InputError(f"{origin}: not understood: {error}") from None
    family = TYPES[model_type][0]
    return _as_exported(family, architecture(fields, origin), own, origin)


def to_config(contents: Contents, training: Mapping[str, Any]) -> dict[str, Any]:
    """Return the config.json of an encoder.

    A stack of positional convolutions (data2vec's) makes it a Data2VecAudioModel. With a single one
    it is a HubertModel, or a Wav2Vec2Model, which computes the same. An encoder that is none of
    these has the model_type `OWN`. Dropouts come from the model's settings in `training`, if known.
    """
    ours = contents.config
    model_type = _model_type(contents)
    noted = {OWN: {"family": contents.family, "config": ours}}
    if model_type == OWN:
        return {"model_type": OWN, **noted}
    channels, kernels, strides = zip(*parse_conv_layers(ours["conv_feature_layers"]), strict=True)
    config: dict[str, Any] = {
        "architectures": [TYPES[model_type][2]],
        "model_type": model_type,
        "dtype": "float32",
        **{theirs: ours[name] for name, (theirs, _) in _FIELDS.items()},
        **{theirs: training[name] for name, theirs in _DROPOUTS.items() if name in training},
        **{name: _REQUIRED[name] for name in _COMMON},
        "conv_dim": channels,
        "conv_kernel": kernels,
        "conv_stride": strides,
        # Masking in fine-tuning: transformers' default. At 0 its model would have no place for the
        # mask embedding.
        "mask_time_prob": 0.05,
        **noted,
    }
    if model_type == "data2vec-audio":
        config["num_conv_pos_embeddings"] = ours["pos_conv_depth"]
        config["conv_pos_kernel_size"] = _kernel(ours["conv_pos"], ours["pos_conv_depth"])
    else:
        config["num_conv_pos_embeddings"] = ours["conv_pos"]
        config["do_stable_layer_norm"] = ours["layer_norm_first"]
        config["feat_extract_norm"] = _EXTRACTORS[ours["extractor_mode"]]
    return config


def _model_type(contents: Contents) -> str:
    ours = contents.config
    if ours["pitch_bands"] or ours["mel_bands"]:
        return OWN
    if ours["pos_conv_depth"] == 1:
        return "wav2vec2" if contents.family == "wav2vec2" else "hubert"
    fits = not ours["layer_norm_first"] and ours["extractor_mode"] == "layer_norm"
    return "data2vec-audio" if fits else OWN


def _kernel(conv_pos: int, depth: int) -> int:
    """Return the kernel of one convolution of a stack (modules.positional_conv)."""
    return max(3, conv_pos // depth)


def _stack(config: Mapping[str, Any]) -> dict[str, Any]:
    depth = int(config.get("num_conv_pos_embeddings", 5))
    kernel = int(config.get("conv_pos_kernel_size", 19))
    if depth < 2 or kernel < 3:
        raise ValueError(f"{depth} positional convolutions of {kernel} frames")
    return {
        "extractor_mode": "layer_norm",
        "layer_norm_first": False,
        "pos_conv_depth": depth,
        "conv_pos": depth * kernel,
    }


def _single(config: Mapping[str, Any]) -> dict[str, Any]:
    norms = {theirs: ours for ours, theirs in _EXTRACTORS.items()}
    return {
        "extractor_mode": norms[config.get("feat_extract_norm", "group")],
        "layer_norm_first": config.get("do_stable_layer_norm", False),
        "pos_conv_depth": 1,
        "conv_pos": config.get("num_conv_pos_embeddings", 128),
    }


def _as_exported(
    family: str, fields: dict[str, Any], own: Any, origin: str
) -> tuple[str, dict[str, Any]]:
    """Return family and settings as our export noted them, if they still hold.

    conv_feature_layers, and conv_pos in a stack, have many spellings. With the original one a model
    keeps its fingerprint.
    """
    if not _is_noted(own):
        return family, fields
    exported = architecture(own["config"], origin)
    if _parsed_settings(exported) != _parsed_settings(fields):
        return family, fields
    return own["family"], exported


def _is_noted(own: Any) -> bool:
    """Tell whether this is what `to_config` notes under `OWN`."""
    return (
        isinstance(own, Mapping)
        and isinstance(own.get("config"), Mapping)
        and own.get("family") in FAMILIES
    )


def _parsed_settings(config: dict[str, Any]) -> dict[str, Any]:
    kernel = _kernel(config["conv_pos"], config["pos_conv_depth"])
    layers = parse_conv_layers(config["conv_feature_layers"])
    return {**config, "conv_pos": kernel, "conv_feature_layers": layers}
