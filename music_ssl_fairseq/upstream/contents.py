"""Describe a checkpoint of any origin in one form.

Each file format is one module that returns `Contents`; `upstream.model` builds the model.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from music_ssl_fairseq.errors import InputError
from music_ssl_fairseq.frames import SAMPLE_RATE, parse_conv_layers
from music_ssl_fairseq.modules.encoder_config import AudioEncoderConfig
from music_ssl_fairseq.runtime import hub

_FIELDS = (
    "extractor_mode", "conv_feature_layers", "conv_bias", "encoder_layers", "encoder_embed_dim",
    "encoder_ffn_embed_dim", "encoder_attention_heads", "layer_norm_first", "conv_pos",
    "conv_pos_groups", "pos_conv_depth", "pitch_bands", "pitch_taps", "mel_bands",
)  # fmt: skip
ARCHITECTURE = {name: getattr(AudioEncoderConfig, name) for name in _FIELDS}
"""Fields of AudioEncoderConfig that decide what an encoder computes, with fairseq's defaults, which
old checkpoints leave out."""

FAMILIES = ("music_hubert", "music2vec", "hubert", "data2vec_audio", "wav2vec2")
"""Registered names of the models whose encoder ours is."""

PREFIXES = (
    "feature_extractor.", "layer_norm.", "post_extract_proj.", "encoder.",
    "pitch_filters.", "pitch_proj.", "mel_proj.",
)  # fmt: skip
"""Prefixes of an encoder's tensors besides `mask_emb`; the rest is heads. fairseq has the first
four."""


@dataclass
class Contents:
    """A pre-trained encoder as data."""

    family: str  # one of FAMILIES
    config: dict[str, Any]  # a value for each field of ARCHITECTURE
    # Encoder tensors under fairseq's names (`feature_extractor.conv_layers.0.0.weight`,
    # `encoder.pos_conv.0.weight_g`, ...), without heads. `mask_emb` may be missing: it is only
    # needed for training. `post_extract_proj` is missing where extractor and encoder have the same
    # width and the family then has no projection.
    state: dict[str, Tensor]
    normalise: bool  # whether waveforms were brought to zero mean and unit variance in training
    sample_rate: int = SAMPLE_RATE  # Hz
    # The file, for messages and reports; a model on the hub with its commit
    origin: str = field(default="", compare=False)

    @property
    def name(self) -> str:
        """The run (`music_hubert-short`), the file's stem, or the hub's name without its user."""
        if hub.is_name(self.origin):
            return self.origin.partition("/")[2].partition("@")[0]
        path = Path(self.origin)
        if path.parent.name != "checkpoints":
            return path.stem
        run = "-".join(path.absolute().parts[-4:-2])
        return f"{run} {path.stem.removeprefix('checkpoint_best').strip()}".strip()


def check_sample_rate(contents: Contents) -> None:
    """Refuse a model of another sample rate than ours."""
    if contents.sample_rate != SAMPLE_RATE:
        raise InputError(
            f"{contents.origin}: was trained at {contents.sample_rate} Hz, but audio is read at "
            f"{SAMPLE_RATE} Hz here: take a model of that rate"
        )


def architecture(fields: Mapping[str, Any], origin: str) -> dict[str, Any]:
    """Pick ARCHITECTURE out of a model's settings, as plain values of the right type.

    Raises InputError if a setting has no sensible value.
    """
    config: dict[str, Any] = {}
    for name, default in ARCHITECTURE.items():
        value = fields.get(name)
        try:
            kind: Callable[[Any], Any] = type(default)
            config[name] = kind(default if value is None else value)
            if kind is int and config[name] < (1 if default else 0):
                raise ValueError
            if name == "extractor_mode" and config[name] not in ("default", "layer_norm"):
                raise ValueError
        except (TypeError, ValueError, OverflowError):
            raise InputError(
                f"{origin}: {name} is {value!r:.200}, which no encoder can have"
            ) from None
    try:
        parse_conv_layers(config["conv_feature_layers"])
    except InputError as error:
        raise InputError(f"{origin}: {error}") from None
    return config


def encoder_state(state: Mapping[str, Any]) -> dict[str, Tensor]:
    """Select the encoder's tensors, in float32, with weight norm under its old name."""
    renamed = {
        ".parametrizations.weight.original0": ".weight_g",
        ".parametrizations.weight.original1": ".weight_v",
    }
    found: dict[str, Tensor] = {}
    for name, tensor in state.items():
        if not isinstance(tensor, Tensor):
            continue
        if name == "mask_emb" or name.startswith(PREFIXES):
            for new, old in renamed.items():
                name = name.replace(new, old)
            found[name] = tensor.float()
    return found
