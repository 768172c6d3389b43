"""Settings of fairseq that a probe cannot have."""

from typing import Any

from omegaconf import OmegaConf

from music_ssl_fairseq.errors import InputError
from music_ssl_fairseq.runtime.typed import with_setting

_CHOICE = "validation on all of valid, after each epoch, chooses the head"
_OWN = "heads have their own optimizer, schedule and loss"
_ENCODER = "heads are trained in fp32; model.precision is that of an unfrozen encoder"
_BATCHES = "batches of a probe have dataset.batch_size windows"
_FILE = "the checkpoint of a probe is the file of the best head so far"

_FIXED: dict[str, tuple[Any, str]] = {
    "dataset.train_subset": ("train", "heads learn from train"),
    "dataset.valid_subset": ("valid", f"{_CHOICE}; fairseq-validate scores it on another split"),
    "dataset.disable_validation": (False, _CHOICE),
    "dataset.validate_after_updates": (0, _CHOICE),
    "dataset.max_valid_steps": (None, _CHOICE),
    "dataset.max_tokens": (None, _BATCHES),
    "dataset.max_tokens_valid": (None, _BATCHES),
    "optimizer._name": ("row_adam", _OWN),
    "lr_scheduler._name": ("fixed", _OWN),
    "criterion._name": ("music_probe", _OWN),
    "ema.store_ema": (False, "heads have no moving average"),
    "common.fp16": (False, _ENCODER),
    "common.bf16": (False, _ENCODER),
    "common.amp": (False, _ENCODER),
    "checkpoint.finetune_from_model": (None, "heads start anew; model.upstream is the encoder"),
    "checkpoint.best_checkpoint_metric": ("saved", _FILE),
    "checkpoint.maximize_best_checkpoint_metric": (True, _FILE),
}


def refuse_settings(cfg: Any) -> None:
    """Refuse what would train or choose heads in another way, or end in a traceback.

    Args:
        cfg: fairseq's whole configuration.

    Raises:
        InputError: about the first such setting.
    """
    for name, (needed, reason) in _FIXED.items():
        value = OmegaConf.select(cfg, name)
        if value != needed:
            command = with_setting(f"{name}=")
            raise InputError(f"{name}={value}: not for a probe: {reason}", command)
