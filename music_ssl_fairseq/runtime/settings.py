"""Declare settings, and refuse those whose values make no sense, our own and fairseq's.

torch and fairseq answer some with a traceback, and train with others: a negative learning rate, a
limit that is NaN and so is never reached.
"""

import ast
import math
from collections.abc import Iterator
from dataclasses import field
from typing import Any

from omegaconf import OmegaConf

from music_ssl_fairseq.errors import InputError
from music_ssl_fairseq.runtime.user_command import typed, with_setting


def setting(default: Any, help: str) -> Any:
    """Return a dataclass field with a help text; a list as default is copied per instance."""
    if isinstance(default, list):
        return field(default_factory=lambda: list(default), metadata={"help": help})
    return field(default=default, metadata={"help": help})


_LARGEST_SEED = 2**32 - 1

_ONE_OR_MORE = """
    common.log_interval dataset.batch_size dataset.batch_size_valid dataset.max_tokens
    dataset.max_tokens_valid dataset.validate_interval checkpoint.save_interval
    optimization.update_freq task.crops_per_track model.encoder_layers model.encoder_embed_dim
    model.encoder_ffn_embed_dim model.encoder_attention_heads model.conv_pos model.conv_pos_groups
    model.pos_conv_depth model.final_dim model.average_top_k_layers model.hidden_size
    model.patience model.mask_length model.clone_batch model.projection_sets model.decoder_dim
    model.decoder_layers model.decoder_kernel model.decoder_groups optimizer.iterations
"""
_ABOVE_ZERO = """
    task.crop_seconds model.logit_temp model.learning_rates model.lr_factor optimizer.adam_eps
    optimizer.update_rms model.encoder_learning_rate model.layer_decay criterion.loss_scale
"""
_ZERO_OR_MORE = """
    dataset.num_workers dataset.data_buffer_size dataset.validate_interval_updates
    dataset.validate_after_updates checkpoint.save_interval_updates optimization.max_epoch
    optimization.max_update optimization.stop_time_hours optimization.lr optimization.clip_norm
    lr_scheduler.warmup_updates lr_scheduler.warmup_steps lr_scheduler.hold_steps
    lr_scheduler.decay_steps lr_scheduler.phase_ratio optimizer.weight_decay task.min_seconds
    task.equaliser_db task.window_seconds task.cache_limit_gb task.save_seconds
    model.feature_grad_mult model.lr_patience model.residual_init model.ema_anneal_end_step
    model.top_k_updates model.frozen_updates criterion.pred_masked_weight
    criterion.pred_nomask_weight criterion.label_weights criterion.cqt_weight
    criterion.unit_weight criterion.features_pen_weight criterion.loss_beta model.cqt_bands
    model.mel_bands model.pitch_bands
"""
_UP_TO_ONE = "task.mix_prob task.max_unreadable model.ema_decay model.ema_end_decay"
_BELOW_ONE = """
    model.dropout model.attention_dropout model.activation_dropout model.dropout_input
    model.decoder_input_dropout model.encoder_layerdrop optimizer.momentum
"""
_RANGES = {
    "a number from 1 on": (_ONE_OR_MORE, lambda x: x >= 1),
    "a number from 2 on": ("model.projection_size", lambda x: x >= 2),
    "a number above 0": (_ABOVE_ZERO, lambda x: x > 0),
    "0 or a number above": (_ZERO_OR_MORE, lambda x: x >= 0),
    "a number above 0, at most 1": ("model.mask_prob", lambda x: 0 < x <= 1),
    "a number from 0 to 1": (_UP_TO_ONE, lambda x: 0 <= x <= 1),
    "a number from 0 to below 1": (_BELOW_ONE, lambda x: 0 <= x < 1),
    f"a number from 0 to {_LARGEST_SEED}": ("common.seed", lambda x: 0 <= x <= _LARGEST_SEED),
}
_WIDTH = "model.encoder_embed_dim"
_LISTS = ("optimization.lr", "optimization.update_freq", "model.learning_rates")
"""Lists that need an item."""


def check_ranges(cfg: Any) -> None:
    """Check the numbers of a configuration: a tree with the groups `model`, `task` and so on.

    Raises InputError about the first that is not finite, or outside of its range.
    """
    for name, value in _numbers(OmegaConf.to_container(cfg)):
        if isinstance(value, float) and not math.isfinite(value):
            raise _refused(name, cfg, "a finite number")
    for name in _LISTS:
        if OmegaConf.select(cfg, name) == []:
            raise _refused(name, cfg, "at least one number")
    for words, (names, fits) in _RANGES.items():
        for name in names.split():
            # A value may refer to one that is not given.
            value = OmegaConf.select(cfg, name, throw_on_resolution_failure=False)
            if not all(fits(number) for _, number in _numbers(value)):
                raise _refused(name, cfg, words)
    betas = OmegaConf.select(cfg, "optimizer.adam_betas")
    if betas is not None and not _are_betas(str(betas)):
        raise _refused("optimizer.adam_betas", cfg, "two numbers from 0 to below 1")
    masked, other = "criterion.pred_masked_weight", "criterion.pred_nomask_weight"
    if OmegaConf.select(cfg, masked) == 0 and not OmegaConf.select(cfg, other):
        raise _refused(masked, cfg, f"a number above 0, because {other} is 0")
    divisors = [(_WIDTH, "model.encoder_attention_heads"), (_WIDTH, "model.conv_pos_groups")]
    if str(OmegaConf.select(cfg, "model.encode")) == "visible":
        divisors += [(width, "model.decoder_groups") for width in (_WIDTH, "model.decoder_dim")]
    for width, name in divisors:
        size = OmegaConf.select(cfg, width)
        if size is not None and size % (OmegaConf.select(cfg, name) or 1):
            raise _refused(name, cfg, f"a divisor of {width}={size}")


def _are_betas(text: str) -> bool:
    try:
        first, second = ast.literal_eval(text)
        return 0 <= first < 1 and 0 <= second < 1
    except (SyntaxError, TypeError, ValueError):
        return False


def _numbers(value: Any, name: str = "") -> Iterator[tuple[str, float]]:
    """Yield the numbers in a tree, each with its dotted name; items of a list have the list's."""
    if isinstance(value, dict):
        for key, part in value.items():
            yield from _numbers(part, f"{name}.{key}" if name else str(key))
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield name, value
    elif not isinstance(value, str | None):
        for part in value if hasattr(value, "__iter__") else ():
            yield from _numbers(part, name)


def _refused(name: str, cfg: Any, words: str) -> InputError:
    value = str(OmegaConf.select(cfg, name)).replace(" ", "")
    given = any(word.lstrip("+").startswith(f"{name}=") for word in typed())
    error = f"{name}={value}: expected {words}"
    return InputError(error, with_setting(f"{name}=")) if given else InputError(error)
