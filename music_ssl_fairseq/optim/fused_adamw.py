"""Adam with decoupled weight decay, in a handful of kernels instead of thousands."""

import ast
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any, List  # noqa: UP035 (fairseq's parser needs List)

import torch
from fairseq.dataclass import FairseqDataclass
from fairseq.optim import FairseqOptimizer, register_optimizer
from omegaconf import II
from torch import Tensor

from music_ssl_fairseq.optim.gradient_sums import GradientSums, can_sum
from music_ssl_fairseq.runtime.delayed_fetch import DelayedFetch


@dataclass
class FusedAdamWConfig(FairseqDataclass):
    """The fields of fairseq's adam."""

    adam_betas: str = field(
        default="(0.9,0.98)", metadata={"help": "decay of the gradient's mean and mean square"}
    )
    adam_eps: float = field(
        default=1e-6,
        metadata={
            "help": "added to the root of the mean square, after the correction of its bias as in "
            "the paper; fairseq's adam adds it before"
        },
    )
    weight_decay: float = field(
        default=0.01, metadata={"help": "times the learning rate, as in fairseq's adam"}
    )
    lr: List[float] = II("optimization.lr")  # noqa: UP006, RUF009


@register_optimizer("fused_adamw", dataclass=FusedAdamWConfig)
class FusedAdamW(FairseqOptimizer):
    """torch's AdamW: fused on GPUs.

    fairseq's own loops over the parameters in Python, to scale gradients, to clip them and to step.

    Attributes:
        late_norm: see `clip_grad_norm`. It also leaves it to `step` to scale gradients, on the way.
            Our tasks set it where the trainer uses this optimiser directly; fairseq's fp16 wrappers
            scale gradients by the norm that they are given.
    """

    def __init__(self, cfg: FusedAdamWConfig, params: Iterable[Tensor]):
        super().__init__(cfg)
        tensors = list(params)
        on_gpu = all(p.is_cuda for p in tensors)
        self._optimizer = torch.optim.AdamW(tensors, fused=on_gpu, **self.optimizer_config)
        self.late_norm = False
        self._late = DelayedFetch()
        self._factor: float | Tensor = 1.0
        self._sums: dict[torch.nn.Module, GradientSums] = {}

    @property
    def optimizer_config(self) -> dict[str, Any]:
        """What the command line may change when a checkpoint is loaded."""
        return {
            "lr": self.cfg.lr[0],
            "betas": tuple(ast.literal_eval(str(self.cfg.adam_betas))),
            "eps": self.cfg.adam_eps,
            "weight_decay": self.cfg.weight_decay,
        }

    @property
    def supports_flat_params(self) -> bool:
        """Yes: each number is updated by itself."""
        return True

    def _gradients(self) -> list[Tensor]:
        return [grad for p in self.params if (grad := p.grad) is not None]

    @property
    def _on_the_way(self) -> bool:
        """Whether gradients are scaled by `step`, which reads them anyway, and not before."""
        return self.late_norm and bool(self._optimizer.defaults["fused"])

    def batch(self, model: torch.nn.Module) -> AbstractContextManager[None]:
        """What the forward and the backward pass of a batch run in, for `all_reduce_grads` to
        begin while the backward pass of an update's last batch still runs.

        Args:
            model: as fairseq's trainer has it, wrapped if there are several processes.
        """
        sums = self._sums_of(model)
        return nullcontext() if sums is None else sums.batch()

    def _sums_of(self, module: torch.nn.Module) -> GradientSums | None:
        ddp: Any = getattr(module, "module", None)
        if ddp not in self._sums and can_sum(ddp):
            self._sums[ddp] = GradientSums(ddp, 1 if self._on_the_way else ddp.world_size)
        return self._sums.get(ddp)

    def all_reduce_grads(self, module: torch.nn.Module) -> None:
        """Average gradients over processes, with `legacy_ddp` as `GradientSums` does."""
        sums = self._sums_of(module)
        if sums is None:
            super().all_reduce_grads(module)
        else:
            sums.finish()
            self._factor = self._factor * sums.to_average

    def multiply_grads(self, c: float | Tensor) -> None:
        """Multiply all gradients by a constant."""
        self._factor = self._factor * c
        if not self._on_the_way:
            self._scale_now()

    def _scale_now(self) -> None:
        if gradients := self._gradients():
            torch._foreach_mul_(gradients, self._factor)
        self._factor = 1.0

    def clip_grad_norm(
        self, max_norm: float, aggregate_norm_fn: Callable[[Tensor], Tensor] | None = None
    ) -> Tensor:
        """Scale gradients to a joint norm of at most `max_norm` (0: leave them).

        Returns:
            Their norm before. With `late_norm` on a GPU it is that of the update before, on the
            CPU (`DelayedFetch`): fairseq logs it, and stops if it is not finite, one update later.
            `step` does nothing with gradients that are not finite, so no weight is lost by that.
        """
        gradients = self._gradients()
        if aggregate_norm_fn is not None or not gradients:
            self._scale_now()
            return super().clip_grad_norm(max_norm, aggregate_norm_fn)
        norm = torch.stack(torch._foreach_norm(gradients)).norm() * self._factor
        if max_norm > 0:
            self.multiply_grads((max_norm / (norm + 1e-6)).clamp(max=1.0))
        if not self._on_the_way:
            return norm
        self._optimizer.found_inf = (~norm.isfinite()).float()  # type: ignore[attr-defined]
        return self._late(norm)

    def step(self, *args: Any, **kwargs: Any) -> None:
        """Update the parameters."""
        if self._on_the_way:
            factor = self._factor
            if not isinstance(factor, Tensor):  # without clipping
                # Written there: to copy it there would wait for all that the GPU has yet to do.
                device = self.param_groups[0]["params"][0].device
                factor = torch.full((), factor, dtype=torch.float32, device=device)
            # What gradients are divided by.
            self._optimizer.grad_scale = factor.float().reciprocal()  # type: ignore[attr-defined]
        super().step(*args, **kwargs)
        self._factor = 1.0

    def zero_grad(self) -> None:
        """Drop all gradients, and what they were to be multiplied by."""
        super().zero_grad()
        self._factor = 1.0
        for sums in self._sums.values():
            sums.begin()
