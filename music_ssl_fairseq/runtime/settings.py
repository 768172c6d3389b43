"""Declare settings, and refuse impossible values of ours and of fairseq's.

torch and fairseq answer some with a traceback, and train with others: a negative learning rate, a
limit that is NaN and so is never reached.
"""

import ast
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import field, fields
from typing import Any, NamedTuple

from omegaconf import OmegaConf

from music_ssl_fairseq.errors import InputError
from music_ssl_fairseq.runtime.user_command import typed, with_setting


class Range(NamedTuple):
    """The numbers that a setting may be."""

    words: str
    holds: Callable[[float], bool]


FROM_1 = Range("a number from 1 on", lambda x: x >= 1)
FROM_2 = Range("a number from 2 on", lambda x: x >= 2)
ABOVE_0 = Range("a number above 0", lambda x: x > 0)
FROM_0 = Range("0 or a number above", lambda x: x >= 0)
SHARE = Range("a number above 0, at most 1", lambda x: 0 < x <= 1)
UP_TO_1 = Range("a number from 0 to 1", lambda x: 0 <= x <= 1)
BELOW_1 = Range("a number from 0 to below 1", lambda x: 0 <= x < 1)
_SEED = Range(f"a number from 0 to {2**32 - 1}", lambda x: 0 <= x < 2**32)


def setting(default: Any, help: str, within: Range | None = None, **more: Any) -> Any:
    """Return a dataclass field of fairseq's configuration; a list is copied per instance.

    `within` are the numbers that it may be, if it is one or a list of them.
    """
    metadata = {"help": help, "within": within, **more}
    if isinstance(default, list):
        return field(default_factory=lambda: list(default), metadata=metadata)
    return field(default=default, metadata=metadata)


def changeable(default: Any, help: str, within: Range | None = None) -> Any:
    """Return a `setting` that may have another value when a run is continued.

    It changes no result, or names files, which are compared by what they hold.
    """
    return setting(default, help, within, may_change=True)


def copied(name: str) -> Any:
    """Return a field with the value of another group's setting, such as `model.mask_prob`."""
    group = name.partition(".")[0]
    whose = "the model's; set it there" if group == "model" else f"set it in {group}"
    return changeable(f"${{{name}}}", whose)


def may_change(config: type, name: str) -> bool:
    """Return whether this field of a dataclass is `changeable`."""
    declared = getattr(config, "__dataclass_fields__", {}).get(name)
    return declared is not None and declared.metadata.get("may_change", False)


_OF_FAIRSEQ = {
    FROM_1: """
        common.log_interval dataset.batch_size dataset.batch_size_valid dataset.max_tokens
        dataset.max_tokens_valid dataset.validate_interval checkpoint.save_interval
        optimization.update_freq
    """,
    FROM_0: """
        dataset.num_workers dataset.data_buffer_size dataset.validate_interval_updates
        dataset.validate_after_updates checkpoint.save_interval_updates optimization.max_epoch
        optimization.max_update optimization.stop_time_hours optimization.lr optimization.clip_norm
        lr_scheduler.warmup_updates lr_scheduler.warmup_steps lr_scheduler.hold_steps
        lr_scheduler.decay_steps lr_scheduler.phase_ratio
    """,
    _SEED: "common.seed",
}
"""Ranges of fairseq's own settings; ours declare theirs."""

_WIDTH = "model.encoder_embed_dim"
_LISTS = ("optimization.lr", "optimization.update_freq", "model.learning_rates")
"""Lists that need an item."""


def check_ranges(cfg: Any, configs: Mapping[str, type]) -> None:
    """Check the numbers of a configuration: a tree with the groups `model`, `task` and so on.

    `configs` are the dataclasses of groups, whose fields declare ranges.

    Raises InputError about the first that is not finite, or outside of its range.
    """
    for name, value in _numbers(OmegaConf.to_container(cfg)):
        if isinstance(value, float) and not math.isfinite(value):
            raise _refused(name, cfg, "a finite number")
    for name in _LISTS:
        if OmegaConf.select(cfg, name) == []:
            raise _refused(name, cfg, "at least one number")
    ranges: dict[str, Range | None]
    ranges = {name: within for within, names in _OF_FAIRSEQ.items() for name in names.split()}
    for group, config in configs.items():
        ranges |= {f"{group}.{f.name}": f.metadata.get("within") for f in fields(config)}
    for name, within in ranges.items():
        # A value may refer to one that is not given.
        value = OmegaConf.select(cfg, name, throw_on_resolution_failure=False)
        if within and not all(within.holds(number) for _, number in _numbers(value)):
            raise _refused(name, cfg, within.words)
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
