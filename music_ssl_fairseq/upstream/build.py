"""Build an encoder from a checkpoint's contents, or start pre-training from one."""

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from music_ssl_fairseq.errors import InputError
from music_ssl_fairseq.frames import parse_conv_layers
from music_ssl_fairseq.modules.audio_encoder import AudioEncoder, AudioEncoderConfig
from music_ssl_fairseq.upstream.contents import ARCHITECTURE, PREFIXES, Contents, check_sample_rate


def build_encoder(contents: Contents, precision: str = "auto", fast: str = "on") -> AudioEncoder:
    """Build the encoder with the checkpoint's weights, on the CPU.

    Raises InputError if tensors are missing, left over or of another shape.
    """
    with torch.random.fork_rng(devices=[]):
        model = _new_encoder(contents, precision=precision, fast=fast)
    projects = "post_extract_proj.weight" in contents.state
    if not projects and model.layer_norm.weight.numel() == contents.config["encoder_embed_dim"]:
        # HuBERT and wav2vec 2.0 have no projection where extractor and encoder are equally wide.
        model.post_extract_proj = None
    load_encoder(model, contents)
    return model


def _new_encoder(contents: Contents, **options: Any) -> AudioEncoder:
    """Build an encoder of the checkpoint's architecture, with initial weights.

    Raises InputError if no encoder can have these settings, or they imply another size than the
    checkpoint's: a file from the internet must not fill the memory.
    """
    config: dict[str, Any] = {name: contents.config[name] for name in ARCHITECTURE}
    held = sum(tensor.numel() for tensor in contents.state.values())
    expected = _num_values(config)
    if config["encoder_layers"] > len(contents.state) or expected > 2 * held + 1_000_000:
        raise InputError(
            f"{contents.origin}: another architecture: its settings are those of a model with "
            f"{config['encoder_layers']} layers and {expected:.2g} weights, but it holds {held:.2g}"
        )
    try:
        width, heads = config["encoder_embed_dim"], config["encoder_attention_heads"]
        if width % heads:
            raise ValueError(f"{heads} attention heads of {width} values in all")
        return AudioEncoder(AudioEncoderConfig(**config, **options))
    except (ValueError, RuntimeError, AssertionError, ZeroDivisionError, TypeError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise InputError(
            f"{contents.origin}: no encoder can have its settings ({reason:.120})"
        ) from None


def _num_values(config: dict[str, Any]) -> int:
    """Count the weights of an encoder, without biases and norms."""
    total, channels = 0, 1
    for dim, kernel, _ in parse_conv_layers(config["conv_feature_layers"]):
        total += dim * channels * kernel
        channels = dim
    width = config["encoder_embed_dim"]
    groups = max(1, config["conv_pos_groups"])
    layer = 4 * width * width + 2 * width * config["encoder_ffn_embed_dim"]
    positions = width * width * config["conv_pos"] // groups
    return total + width * channels + config["encoder_layers"] * layer + positions


def random_contents(contents: Contents, seed: int) -> Contents:
    """Return contents of the same architecture with initial weights, drawn from `seed` alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = _new_encoder(contents)
    state = {
        name: tensor.detach().clone()
        for name, tensor in model.state_dict().items()
        if name in contents.state
    }
    origin = str(Path(contents.origin).with_name(f"{Path(contents.origin).stem} random.pt"))
    return replace(contents, state=state, origin=origin)


def load_encoder(model: AudioEncoder, contents: Contents) -> None:
    """Copy a checkpoint's tensors into an encoder, or a model that is one; heads stay.

    Raises InputError if tensors are missing, left over, of another shape, or not finite.
    """
    state = contents.state
    own = {
        name: tensor
        for name, tensor in model.named_parameters()
        if name.startswith(PREFIXES) or (name == "mask_emb" and name in state)
    }
    missing = [name for name in own if name not in state]
    extra = [name for name in state if name not in own]
    shapes = [
        f"{name} {tuple(state[name].shape)} instead of {tuple(own[name].shape)}"
        for name in own
        if name in state and state[name].shape != own[name].shape
    ]
    problems = [
        f"{what} {', '.join(names[:3])}{' ...' if len(names) > 3 else ''}"
        for what, names in (("lacks", missing), ("has no place for", extra), ("has", shapes))
        if names
    ]
    if problems:
        raise InputError(f"{contents.origin}: another architecture: {'; '.join(problems)}")
    for name in own:
        if not state[name].isfinite().all():
            raise InputError(
                f"{contents.origin}: {name} has values that are NaN or infinite: take a checkpoint "
                "from before its training diverged, or copy the file again"
            )
    with torch.no_grad():
        for name, tensor in own.items():
            tensor.copy_(state[name])


logger = logging.getLogger(__name__)


def initialise(model: AudioEncoder, contents: Contents, normalise: bool) -> None:
    """Start pre-training from a checkpoint's encoder (`model.init_from`); heads keep their weights.

    If `normalise`, the new run's `task.normalize`, is not the checkpoint's, there is a warning.

    Raises InputError if the checkpoint is of another sample rate, or the encoder has another
    architecture; the message names the settings that would make it fit.
    """
    check_sample_rate(contents)
    different = [
        f"model.{name}={_written(contents.config[name])}"
        for name in ARCHITECTURE
        if _comparable(name, contents.config[name]) != _comparable(name, model.cfg[name])
    ]
    if different:
        raise InputError(
            f"{contents.origin}: model.init_from has an encoder of another shape; to make the "
            f"model fit, set {' '.join(different)}"
        )
    load_encoder(model, contents)
    if contents.normalise != normalise:
        was = str(contents.normalise).lower()
        logger.warning("%s was trained with task.normalize=%s", contents.origin, was)
    logger.info("started from the encoder of %s (%s)", contents.origin, contents.family)


def _comparable(name: str, value: Any) -> Any:
    if name == "conv_feature_layers":
        return parse_conv_layers(str(value))
    return str(value) if isinstance(ARCHITECTURE[name], str) else value


def _written(value: Any) -> str:
    """Write a value as hydra reads it on a command line."""
    if isinstance(value, bool):
        return str(value).lower()
    text = str(value)
    return f"'{text}'" if set(text) & set("[(, ") else text
