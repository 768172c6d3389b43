"""Learning rate schedules: checks, warm-up, and advice after a collapse.

`cfg` is fairseq's whole configuration.
"""

from typing import Any

from music_ssl_fairseq.errors import InputError


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


def warmup_updates(cfg: Any) -> int:
    """Return the number of updates until the learning rate has reached its peak."""
    scheduler = cfg.lr_scheduler
    ratio = scheduler.get("phase_ratio")
    if ratio:
        return int(ratio[0] * cfg.optimization.max_update)
    return int(scheduler.get("warmup_updates") or scheduler.get("warmup_steps") or 0)


def collapse_advice(cfg: Any) -> str:
    """Return the two settings to change after a collapse, with values that have helped."""
    scheduler = cfg.lr_scheduler
    rate = cfg.optimization.lr[0]
    warmup = warmup_updates(cfg)
    if scheduler.get("phase_ratio"):
        longer = f"a larger first lr_scheduler.phase_ratio (now {scheduler.phase_ratio[0]:g})"
    else:
        name = "warmup_steps" if "warmup_steps" in scheduler else "warmup_updates"
        longer = f"lr_scheduler.{name}={2 * warmup or 300} (now {warmup})"
    return (
        f"Start again with a lower rate and a longer warm-up, for instance optimization.lr="
        f"[{rate / 3:.2g}] (now {rate:g}) and {longer}, in another hydra.run.dir; "
        "criterion.stop_if_collapsed=false trains on"
    )
