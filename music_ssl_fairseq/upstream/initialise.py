"""Start pre-training from the encoder of a checkpoint: `model.init_from`."""

import logging
import os
from typing import Any

from music_ssl_fairseq.errors import InputError
from music_ssl_fairseq.frames import parse_conv_layers
from music_ssl_fairseq.modules.audio_encoder import AudioEncoder
from music_ssl_fairseq.upstream import read
from music_ssl_fairseq.upstream.build import load_encoder
from music_ssl_fairseq.upstream.contents import ARCHITECTURE, check_sample_rate

logger = logging.getLogger(__name__)


def initialise(model: AudioEncoder, path: str | os.PathLike, normalise: bool) -> None:
    """Copy the encoder of any checkpoint that `upstream.load` reads; heads keep their weights.

    Args:
        normalise: `task.normalize` of the new run; a value other than the checkpoint's is logged as
            a probable mistake.

    Raises:
        InputError: if the checkpoint cannot be read, is of another sample rate, or the encoder has
            another architecture; the message names the settings that would make it fit.
    """
    contents = read(path)
    check_sample_rate(contents)
    different = [
        f"model.{name}={_written(contents.config[name])}"
        for name in ARCHITECTURE
        if _comparable(name, contents.config[name]) != _comparable(name, model.cfg[name])
    ]
    if different:
        raise InputError(
            f"{path}: model.init_from has an encoder of another shape; to make the model fit, set "
            + " ".join(different)
        )
    load_encoder(model, contents)
    if contents.normalise != normalise:
        logger.warning(
            "%s was trained with task.normalize=%s", path, str(contents.normalise).lower()
        )
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
