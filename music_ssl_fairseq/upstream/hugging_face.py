"""Read and write folders of transformers' HubertModel, Data2VecAudioModel and Wav2Vec2Model.

transformers is not needed. A folder has `config.json`, `model.safetensors` (one file or several) or
`pytorch_model.bin`, and the feature extractor's settings in `processor_config.json` (transformers
5) or `preprocessor_config.json`. Heads and quantizers are ignored. Encoders that transformers has
no model for are in the same files, for this package alone: `hugging_face_config.OWN`.

Layers are counted alike: `layers()[i]` is `hidden_states[i]`, except that our layer 0 is the
projected output of the extractor, and `hidden_states[0]` is that with the positional convolution
added (and, without layer_norm_first, normalised).
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from music_ssl_fairseq.errors import InputError
from music_ssl_fairseq.frames import SAMPLE_RATE
from music_ssl_fairseq.runtime.texts import read_object
from music_ssl_fairseq.runtime.unpickling import GIT_LFS, utf8_name
from music_ssl_fairseq.upstream.contents import Contents
from music_ssl_fairseq.upstream.find_checkpoint import CONFIG
from music_ssl_fairseq.upstream.hugging_face_config import OWN, TYPES, from_config
from music_ssl_fairseq.upstream.safe_load import safe_load
from music_ssl_fairseq.upstream.tensor_names import from_transformers, to_transformers

SAFETENSORS = "model.safetensors"
PICKLE = "pytorch_model.bin"
PREPROCESSOR = "preprocessor_config.json"
PROCESSOR = "processor_config.json"
_EXTRACTOR = "Wav2Vec2FeatureExtractor"


def folder_of(path: Path) -> Path | None:
    """Return the folder that `path` is, or whose config or weights it is; None for another file."""
    if path.is_dir():
        return path
    part = path.name in (CONFIG, PICKLE) or path.suffix == ".safetensors"
    return path.parent if part and path.with_name(CONFIG).is_file() else None


def read(folder: Path) -> Contents:
    """Read the encoder in a folder from `save_pretrained`, our export or the hub.

    A folder without settings of a feature extractor, which transformers refuses, is taken as in
    fairseq's recipes: waveforms are normalised with layer norms, not with a group norm.

    Raises InputError if it is of another architecture, damaged, or would run code.
    """
    path = folder / CONFIG
    config = read_object(path)
    family, fields = from_config(config, str(path))
    layer_norms = fields["extractor_mode"] == "layer_norm"
    weights = read_weights(folder)
    if config["model_type"] == OWN:
        state = {name: tensor.float() for name, tensor in weights.items()}
    else:
        prefix = TYPES[config["model_type"]][1]
        with_head = any(name.startswith(prefix) for name in weights)
        state = encoder_state(weights, layer_norms, prefix if with_head else "")
        if family not in ("music2vec", "data2vec_audio"):
            drop_identity(state)
    normalise, sample_rate = _input_format(folder, layer_norms)
    return Contents(
        family=family,
        config=fields,
        state=state,
        normalise=normalise,
        sample_rate=sample_rate,
        origin=str(folder),
    )


def to_state(contents: Contents) -> dict[str, Tensor]:
    """Return the encoder's tensors under transformers' names, float32."""
    state = {}
    for name, tensor in contents.state.items():
        theirs = to_transformers(name)
        if theirs is None:
            raise InputError(f"{contents.origin}: transformers has no place for {name}")
        state[theirs] = tensor.detach().to("cpu", torch.float32).contiguous()
    dim = contents.config["encoder_embed_dim"]
    if "post_extract_proj.weight" not in contents.state:
        # transformers always has a projection: the identity.
        state["feature_projection.projection.weight"] = torch.eye(dim)
        state["feature_projection.projection.bias"] = torch.zeros(dim)
    state.setdefault("masked_spec_embed", torch.zeros(dim))
    return state


def takes_padding(contents: Contents) -> bool:
    """Tell whether padding with an attention mask leaves transformers' results as they are.

    A group norm's statistics include the padding, and in a stack of positional convolutions all but
    the first see nonzero values there.
    """
    config = contents.config
    return config["extractor_mode"] == "layer_norm" and config["pos_conv_depth"] == 1


def to_preprocessor(contents: Contents) -> dict[str, Any]:
    """Return the preprocessor_config.json for AutoFeatureExtractor.

    A model that padding disturbs gets no attention mask, as in transformers' models with a group
    norm.
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


def _input_format(folder: Path, layer_norms: bool) -> tuple[bool, int]:
    """Return whether waveforms are normalised, and their sample rate, as transformers reads them.

    Raises InputError if the settings are damaged, or those of another kind of model.
    """
    # transformers 5 nests them in processor_config.json, which precedes the older file.
    file = folder / PROCESSOR
    whole = read_object(file) if file.is_file() else {}
    settings = whole.get("feature_extractor", whole.get("audio_processor"))
    if settings is None:
        file = folder / PREPROCESSOR
        if not file.is_file():
            return layer_norms, SAMPLE_RATE
        settings = read_object(file)
    if not isinstance(settings, dict):
        raise InputError(f"{file}: feature_extractor is not an object of settings")
    kind = settings.get("feature_extractor_type", _EXTRACTOR)
    normalise = settings.get("do_normalize", True)
    sample_rate = settings.get("sampling_rate", SAMPLE_RATE)
    if kind != _EXTRACTOR:
        raise InputError(f"{file}: feature_extractor_type is {kind!r}, not {_EXTRACTOR!r}")
    if not isinstance(normalise, bool):
        raise InputError(f"{file}: do_normalize is {normalise!r}, not true or false")
    if type(sample_rate) is not int or sample_rate <= 0:
        raise InputError(f"{file}: sampling_rate is {sample_rate!r}, not a number of Hz")
    return normalise, sample_rate


def read_weights(folder: Path) -> dict[str, Tensor]:
    """Read every tensor of a model, under its names; safetensors are preferred.

    Raises InputError if there are none, or they are damaged or incomplete, or would run code.
    """
    weights: dict[str, Tensor] = {}
    for path in _files(folder):
        loaded = _read_safetensors(path) if path.suffix == ".safetensors" else safe_load(path)
        if not isinstance(loaded, dict):
            raise InputError(f"{path}: holds no tensors by name")
        weights |= {name: tensor for name, tensor in loaded.items() if isinstance(tensor, Tensor)}
    return weights


def _files(folder: Path) -> list[Path]:
    for name in (SAFETENSORS, PICKLE):
        if (folder / name).is_file():
            return [folder / name]
        index = folder / f"{name}.index.json"
        if index.is_file():
            try:
                names = set(read_object(index)["weight_map"].values())
                # An index from the internet must not point out of its folder.
                return [index.with_name(Path(name).name) for name in sorted(names)]
            except (KeyError, TypeError, AttributeError):
                raise InputError(f"{index}: not an index of weights") from None
    raise InputError(f"{folder}: neither {SAFETENSORS} nor {PICKLE} in it")


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        with path.open("rb") as file:
            if file.read(len(GIT_LFS)) == GIT_LFS:
                raise InputError(
                    f"{path}: a Git LFS pointer: fetch the file itself with `git lfs pull`"
                )
        with utf8_name(path) as name:
            return load_file(name)
    except FileNotFoundError:
        raise InputError(f"{path}: missing, but the index of weights names it") from None
    except (SafetensorError, OSError) as error:
        raise InputError(
            f"{path}: truncated, damaged or no safetensors ({error}): copy or download it again"
        ) from None


def encoder_state(
    tensors: Mapping[str, Tensor], layer_norms: bool, prefix: str = ""
) -> dict[str, Tensor]:
    """Return the encoder's tensors, float32, under our names; transformers' begin with `prefix`."""
    names = (name for name in tensors if name.startswith(prefix))
    ours = {name: from_transformers(name.removeprefix(prefix), layer_norms) for name in names}
    return {own: tensors[name].float() for name, own in ours.items() if own is not None}


def drop_identity(state: dict[str, Tensor]) -> None:
    """Remove an identity projection: fairseq's models have none then."""
    weight, bias = state.get("post_extract_proj.weight"), state.get("post_extract_proj.bias")
    if weight is None or bias is None or weight.size(0) != weight.size(1):
        return
    if torch.equal(weight, torch.eye(weight.size(0))) and not bias.any():
        del state["post_extract_proj.weight"], state["post_extract_proj.bias"]
