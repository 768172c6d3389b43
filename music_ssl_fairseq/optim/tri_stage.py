"""fairseq's tri_stage learning rate, for runs of any length."""

import copy
from typing import Any

from fairseq.optim.lr_scheduler import register_lr_scheduler
from fairseq.optim.lr_scheduler.tri_stage_lr_scheduler import (
    TriStageLRSchedule,
    TriStageLRScheduleConfig,
)


@register_lr_scheduler("tri_stage_any_length", dataclass=TriStageLRScheduleConfig)
class TriStageAnyLength(TriStageLRSchedule):
    """Learning rates equal to fairseq's wherever those are defined.

    fairseq rounds each phase down to whole updates and then divides by them, so that a trial of 10
    updates ends in a ZeroDivisionError. Here the decay has at least one update.
    """

    def __init__(self, cfg: Any, optimizer: Any):
        cfg = copy.copy(cfg)
        if cfg.phase_ratio is not None:
            warmup, hold, decay = (int(cfg.max_update * ratio) for ratio in cfg.phase_ratio)
            cfg.phase_ratio = None
        else:
            warmup, hold, decay = cfg.warmup_steps, cfg.hold_steps, cfg.decay_steps
        cfg.warmup_steps, cfg.hold_steps, cfg.decay_steps = warmup, hold, max(1, decay)
        super().__init__(cfg, optimizer)
