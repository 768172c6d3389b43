"""Folders of transformers' HubertModel, Data2VecAudioModel and Wav2Vec2Model, both ways.

They are read and written without transformers: `config.json`, `model.safetensors` (one file or
several) or `pytorch_model.bin`, and the feature extractor's settings in `processor_config.json`
(transformers 5) or `preprocessor_config.json`. Of a model with more than the encoder (a CTC or
pre-training head, a quantizer), the encoder is read.

Layers are counted alike: `layers()[i]` is `hidden_states[i]`, except that our layer 0 is what the
extractor and the projection made, and `hidden_states[0]` is that with the positional convolution
added (and, without layer_norm_first, normalised).
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from music_ssl_fairseq.errors import InputError
from music_ssl_fairseq.frames import SAMPLE_RATE
from music_ssl_fairseq.upstream.contents import Contents
from music_ssl_fairseq.upstream.hugging_face_config import TYPES, from_config
from music_ssl_fairseq.upstream.names import from_transformers, to_transformers
from music_ssl_fairseq.upstream.weights import PICKLE, read_weights

CONFIG = "config.json"
PREPROCESSOR = "preprocessor_config.json"
PROCESSOR = "processor_config.json"
_EXTRACTOR = "Wav2Vec2FeatureExtractor"


def folder_of(path: Path) -> Path | None:
    """The folder that `path` is, or whose config or weights it is; None if it is another file."""
    if path.is_dir():
        return path
    part = path.name in (CONFIG, PICKLE) or path.suffix == ".safetensors"
    return path.parent if part and path.with_name(CONFIG).is_file() else None


def read(folder: str | Path) -> Contents:
    """The encoder in a folder that `save_pretrained` or our export wrote, or the hub holds.

    Where there are no settings of a feature extractor, which transformers would not accept,
    whether waveforms are normalised follows from the convolutions, as in fairseq's recipes: yes
    with layer norms, no with a group norm.

    Raises:
        InputError: if it is no such folder, another architecture, damaged, or wants to run code.
    """
    folder = Path(folder)
    path = folder / CONFIG
    if not path.is_file():
        raise InputError(f"{folder}: no {CONFIG} in it, so it is not a Hugging Face model")
    config = _read_json(path)
    family, fields = from_config(config, str(path))
    layer_norms = fields["extractor_mode"] == "layer_norm"
    prefix = TYPES[config["model_type"]][1]
    state = _encoder_state(read_weights(folder), prefix, layer_norms)
    if family not in ("music2vec", "data2vec_audio"):
        drop_identity(state)
    normalise, sample_rate = _heard(folder, layer_norms)
    return Contents(
        family=family,
        config=fields,
        state=state,
        normalise=normalise,
        sample_rate=sample_rate,
        origin=str(folder),
    )


def to_state(contents: Contents) -> dict[str, Tensor]:
    """The encoder's tensors under transformers' names, float32."""
    state = {}
    for name, tensor in contents.state.items():
        theirs = to_transformers(name)
        if theirs is None:
            raise InputError(f"{contents.origin}: transformers has no place for {name}")
        state[theirs] = tensor.detach().to("cpu", torch.float32).contiguous()
    dim = contents.config["encoder_embed_dim"]
    if "post_extract_proj.weight" not in contents.state:
        # transformers always has a projection: one that changes nothing.
        state["feature_projection.projection.weight"] = torch.eye(dim)
        state["feature_projection.projection.bias"] = torch.zeros(dim)
    state.setdefault("masked_spec_embed", torch.zeros(dim))
    return state


def takes_padding(contents: Contents) -> bool:
    """Whether transformers' model computes the same in a padded batch with an attention mask.

    A group norm takes its statistics over the padding as well, and in a stack of positional
    convolutions all but the first see what the ones before made of it.
    """
    config = contents.config
    return config["extractor_mode"] == "layer_norm" and config["pos_conv_depth"] == 1


def to_preprocessor(contents: Contents) -> dict[str, Any]:
    """The preprocessor_config.json: how AutoFeatureExtractor makes the model's input.

    A model that padding disturbs gets no attention mask, as transformers wants it for a group norm.
    """
    return {
        "feature_extractor_type": _EXTRACTOR,
        "do_normalize": contents.normalise,
        "feature_size": 1,
        "padding_side": "right",
        "padding_value": 0.0,
        "return_attention_mask": takes_padding(contents),
        "sampling_rate": contents.sample_rate,
    }


def _heard(folder: Path, layer_norms: bool) -> tuple[bool, int]:
    """Whether waveforms are normalised, and their sample rate: what transformers reads.

    Raises:
        InputError: if the settings are damaged, or those of another kind of model.
    """
    file, settings = _extractor_settings(folder)
    if settings is None:
        return layer_norms, SAMPLE_RATE
    kind = settings.get("feature_extractor_type", _EXTRACTOR)
    normalise = settings.get("do_normalize", True)
    sample_rate = settings.get("sampling_rate", SAMPLE_RATE)
    if kind != _EXTRACTOR:
        raise InputError(f"{file}: feature_extractor_type is {kind!r}, not {_EXTRACTOR!r}")
    if not isinstance(normalise, bool):
        raise InputError(f"{file}: do_normalize is {normalise!r}, not true or false")
    if isinstance(sample_rate, bool) or not isinstance(sample_rate, int) or sample_rate <= 0:
        raise InputError(f"{file}: sampling_rate is {sample_rate!r}, not a number of Hz")
    return normalise, sample_rate


def _extractor_settings(folder: Path) -> tuple[Path, dict[str, Any] | None]:
    """The feature extractor's settings, None if there are none, and the file that they are from.

    transformers 5 nests them in processor_config.json, where they go before the older file.
    """
    file = folder / PROCESSOR
    whole = _read_json(file) if file.is_file() else {}
    nested = whole.get("feature_extractor", whole.get("audio_processor"))
    if nested is not None:
        if not isinstance(nested, dict):
            raise InputError(f"{file}: feature_extractor is not an object of settings")
        return file, nested
    file = folder / PREPROCESSOR
    return file, _read_json(file) if file.is_file() else None


def _encoder_state(
    weights: Mapping[str, Tensor], prefix: str, layer_norms: bool
) -> dict[str, Tensor]:
    """The encoder's tensors under our names, without the prefix that a model with a head gives."""
    inside = any(name.startswith(prefix) for name in weights)
    state = {}
    for name, tensor in weights.items():
        if not inside or name.startswith(prefix):
            ours = from_transformers(name.removeprefix(prefix), layer_norms)
            if ours is not None:
                state[ours] = tensor.float()
    return state


def drop_identity(state: dict[str, Tensor]) -> None:
    """Leave out a projection that changes nothing: fairseq's models then have none."""
    weight, bias = state.get("post_extract_proj.weight"), state.get("post_extract_proj.bias")
    if weight is None or bias is None or weight.size(0) != weight.size(1):
        return
    if torch.equal(weight, torch.eye(weight.size(0))) and not bias.any():
        del state["post_extract_proj.weight"], state["post_extract_proj.bias"]


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path}: not readable as JSON ({error})") from None
    if not isinstance(content, dict):
        raise InputError(f"{path}: not a model's settings")
    return content
