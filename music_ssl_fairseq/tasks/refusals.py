"""Settings that a run cannot have, or a probe."""

from collections.abc import Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from fairseq.models import MODEL_DATACLASS_REGISTRY, MODEL_REGISTRY
from fairseq.registry import REGISTRIES
from fairseq.tasks import TASK_DATACLASS_REGISTRY
from omegaconf import OmegaConf

from music_ssl_fairseq.errors import InputError
from music_ssl_fairseq.runtime.settings import check_ranges
from music_ssl_fairseq.runtime.user_command import corrected, with_setting
from music_ssl_fairseq.training.saving import LAST
from music_ssl_fairseq.upstream.find_checkpoint import locate

_GROUPS = ("optimizer", "lr_scheduler", "criterion")

_CHOICE = "validation on all of valid, after each epoch, chooses the head"
_OWN = "heads have their own optimizer, schedule and loss"
_ENCODER = "heads are trained in fp32; model.precision is that of an unfrozen encoder"
_BATCHES = "batches of a probe have dataset.batch_size windows"
_FILE = "the checkpoint of a probe is the file of the best head so far"

_FIXED = {
    "dataset.combine_valid_subsets": (
        False,
        "splits are not joined; dataset.valid_subset names several, and the first decides which "
        "checkpoint is best",
    ),
    "dataset.update_ordered_indices_seed": (
        False,
        "each epoch has an order of its own already, and a resumed run would have another one",
    ),
}
"""Setting -> its only value, and why. fairseq crashes on other values, or ignores them."""

_FIXED_IN_PROBES: dict[str, tuple[Any, str]] = {
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


def whole_configuration(task_cfg: Any) -> Any:
    """Return fairseq's configuration that contains `task_cfg`; None for a task by itself."""
    root = task_cfg._get_root() if OmegaConf.is_config(task_cfg) else None
    return root if root is not None and "checkpoint" in root else None


def configs_of(cfg: Any) -> dict[str, type]:
    """Return the dataclass of each group of fairseq's whole configuration that has one."""
    known = {group: REGISTRIES[group]["dataclass_registry"] for group in _GROUPS}
    known |= {"model": MODEL_DATACLASS_REGISTRY, "task": TASK_DATACLASS_REGISTRY}
    names = {group: OmegaConf.select(cfg, f"{group}._name") for group in known}
    return {group: known[group][name] for group, name in names.items() if name in known[group]}


def refuse_impossible(cfg: Any) -> None:
    """Refuse settings that fairseq would answer with a traceback, take for others, or ignore."""
    check_ranges(cfg, configs_of(cfg))
    _refuse_unknown(cfg)
    _refuse_others(cfg, _FIXED, "")
    for kind in ("fp16", "bf16"):
        efficient = f"common.memory_efficient_{kind}"
        if OmegaConf.select(cfg, efficient) and not OmegaConf.select(cfg, f"common.{kind}"):
            wanted = f"common.{kind}=true"
            raise InputError(
                f"{efficient}=true: without {wanted} it has no effect", with_setting(wanted)
            )
    for name in ("finetune_from_model", "continue_once", "restore_file"):
        _require_file(f"checkpoint.{name}", cfg.checkpoint.get(name) or "")
    start = cfg.checkpoint.finetune_from_model
    others = ("reset_optimizer", "reset_lr_scheduler", "reset_meters", "reset_dataloader")
    given = [name for name in others if cfg.checkpoint[name]]
    given += ["restore_file"] if cfg.checkpoint.restore_file != LAST else []
    if start and given:
        raise InputError(
            f"checkpoint.finetune_from_model resets all but the weights, and does not go with "
            f"checkpoint.{given[0]}",
            with_setting(f"checkpoint.{given[0]}="),
        )


def _refuse_unknown(cfg: Any) -> None:
    """Refuse names that are not registered, which fairseq answers with a KeyError."""
    known = {group: REGISTRIES[group]["registry"] for group in _GROUPS} | {"model": MODEL_REGISTRY}
    for group, names in known.items():
        name = OmegaConf.select(cfg, f"{group}._name")
        if name is not None and name not in names:
            near = get_close_matches(name, names, 1, 0.5)
            right = f"{group}._name={near[0]}" if near else f"{group}._name="
            raise InputError(f"{group}._name={name}: no such {group}", with_setting(right))


def _require_file(name: str, path: str) -> None:
    """Refuse a path that is no checkpoint file. From a folder, fairseq silently starts anew."""
    if path and Path(path).is_dir():
        file = locate(path)
        last = file.with_name(LAST)
        right = f"{name}={last if name.endswith('restore_file') and last.exists() else file}"
        other = (f"{name}=", f"model.init_from={path}") if file.is_dir() else (right,)
        raise InputError(
            f"{name}={path}: a folder; give a checkpoint file in it", with_setting(*other)
        )
    # The default of restore_file need not exist, and loading it reports others.
    if path and not (name.endswith("restore_file") or "://" in path or Path(path).exists()):
        raise InputError(f"{name}={path}: no such checkpoint", corrected(path))


def refuse_in_probes(cfg: Any) -> None:
    """Refuse settings that would train or choose heads in another way, or end in a traceback."""
    _refuse_others(cfg, _FIXED_IN_PROBES, "not for a probe: ")


def _refuse_others(cfg: Any, fixed: Mapping[str, tuple[Any, str]], prefix: str) -> None:
    for name, (needed, reason) in fixed.items():
        value = OmegaConf.select(cfg, name)
        if (value or None) != (needed or None):  # false, 0 and null are one
            command = with_setting(f"{name}=")
            raise InputError(f"{name}={value}: {prefix}{reason}", command)


def check_schedule(cfg: Any) -> None:
    """Refuse a schedule over a number of updates that is not given, and fairseq's unusable one."""
    scheduler, limits = cfg.lr_scheduler, cfg.optimization
    name = scheduler._name
    if name == "manual":
        raise InputError(
            "lr_scheduler=manual: its rates are options of fairseq-train alone, and no settings of "
            "a configuration; take tri_stage, polynomial_decay, cosine or fixed"
        )
    over = {
        "polynomial_decay": ("total_num_update",),
        "tri_stage": ("max_update",) if scheduler.get("phase_ratio") else (),
        "tri_stage_any_length": ("max_update",) if scheduler.get("phase_ratio") else (),
        "cosine": ("max_update",) if not scheduler.get("lr_period_updates") else (),
    }.get(name, ())
    for key in over:
        if scheduler[key] <= 0:
            raise InputError(
                f"optimization.max_update={limits.max_update}: lr_scheduler {name} spreads the "
                "learning rate over the whole run and needs its number of updates; give "
                f"optimization.max_update=N (with optimization.max_epoch, what comes first ends "
                "the run), or lr_scheduler=fixed"
            )
