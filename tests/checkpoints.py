"""Checkpoints of tiny models on disk, as fairseq writes them: ours and stock, old and new."""

import os
from argparse import Namespace
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf

from tests import tiny

TASKS = {
    "music_hubert": "music_hubert_pretraining",
    "music2vec": "music2vec_pretraining",
    "hubert": "hubert_pretraining",
    "data2vec_audio": "audio_pretraining",
    "wav2vec2": "audio_pretraining",
}


def fairseq_wav2vec2(**fields: Any):
    from fairseq.models.wav2vec.wav2vec2 import Wav2Vec2Config, Wav2Vec2Model

    recipe = {"quantize_targets": True, "final_dim": 16, "latent_vars": 8}
    cfg = tiny.config(Wav2Vec2Config, **{**tiny.SIZES, **tiny.NO_DROPOUT, **recipe, **fields})
    return Wav2Vec2Model(cfg)


MODELS = {
    "music_hubert": tiny.music_hubert,
    "music2vec": tiny.music2vec,
    "hubert": tiny.fairseq_hubert,
    "data2vec_audio": tiny.fairseq_data2vec,
    "wav2vec2": fairseq_wav2vec2,
}


def settings(model: Any) -> dict[str, Any]:
    """A model's settings as plain values, as the trainer keeps them."""
    return OmegaConf.to_container(model.cfg, resolve=False, enum_to_str=True)  # type: ignore[return-value]


def write(
    path: Path, family: str, model: Any, normalize: bool = False, form: str = "dict", **extra: Any
) -> Path:
    """Store `model` in the form of some age of fairseq: dict, omegaconf or namespace."""
    fields = settings(model)
    task = {"_name": TASKS[family], "normalize": normalize, "sample_rate": 16000}
    cfg: Any = {"model": {**fields, "_name": family}, "task": task, "common": {"seed": 1}}
    checkpoint: dict[str, Any] = {"model": model.state_dict(), "args": None, "cfg": None, **extra}
    if form == "namespace":
        checkpoint["args"] = Namespace(**{**fields, "arch": family, **task, "task": TASKS[family]})
    elif form == "omegaconf":
        checkpoint["cfg"] = OmegaConf.create(cfg)
    else:
        checkpoint["cfg"] = cfg
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(checkpoint, path)
    return path


class Attack:
    """Wants a command run when it is unpickled."""

    def __init__(self, command: str):
        self.command = command

    def __reduce__(self):
        return os.system, (self.command,)
