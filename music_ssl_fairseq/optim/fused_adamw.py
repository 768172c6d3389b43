"""Adam with decoupled weight decay, in a handful of kernel launches instead of thousands."""

import ast
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, List

import torch
from fairseq.dataclass import FairseqDataclass
from fairseq.optim import FairseqOptimizer, register_optimizer
from omegaconf import II
from torch import Tensor

from music_ssl_fairseq.optim.gradient_sums import GradientSums, can_sum
from music_ssl_fairseq.runtime.delayed_fetch import DelayedFetch
from music_ssl_fairseq.runtime.settings import ABOVE_0, FROM_0, setting


@dataclass
class FusedAdamWConfig(FairseqDataclass):
    """The fields of fairseq's adam."""

    adam_betas: str = setting("(0.9,0.98)", "decay of the gradient's mean and mean square")
    adam_eps: float = setting(
        1e-6,
        "added to the root of the mean square, after the correction of its bias as in the paper; "
        "fairseq's adam adds it before",
        ABOVE_0,
    )
    weight_decay: float = setting(0.01, "times the learning rate, as in fairseq's adam", FROM_0)
    lr: List[float] = II("optimization.lr")


@register_optimizer("fused_adamw", dataclass=FusedAdamWConfig)
class FusedAdamW(FairseqOptimizer):
    """torch's AdamW, fused on GPUs.

    fairseq's Adam loops over the parameters in Python to scale gradients, to clip them and to step.

    With `delayed_norm` (see `clip_grad_norm`), `step` scales the gradients on GPUs, as it reads
    them anyway. Our tasks set it if the trainer uses this optimiser directly; fairseq's fp16
    wrappers need the present norm to scale gradients.
    """

    def __init__(self, cfg: FusedAdamWConfig, params: Iterable[Tensor]):
        super().__init__(cfg)
        tensors = list(params)
        self._optimizer = self._build(tensors, fused=all(p.is_cuda for p in tensors))
        self.delayed_norm = False
        self._fetch = DelayedFetch()
        self._factor: float | Tensor = 1.0
        self._sums: dict[torch.nn.Module, GradientSums] = {}

    def _build(self, tensors: list[Tensor], fused: bool) -> torch.optim.AdamW:
        return torch.optim.AdamW(tensors, fused=fused, **self.optimizer_config)

    @property
    def optimizer_config(self) -> dict[str, Any]:
        """Return the settings that the command line may change when a checkpoint is loaded."""
        return {
            "lr": self.cfg.lr[0],
            "betas": tuple(ast.literal_eval(str(self.cfg.adam_betas))),
            "eps": self.cfg.adam_eps,
            "weight_decay": self.cfg.weight_decay,
        }

    @property
    def supports_flat_params(self) -> bool:
        """Return True: each number is updated by itself."""
        return True

    def _gradients(self) -> list[Tensor]:
        return [grad for p in self.params if (grad := p.grad) is not None]

    @property
    def _scales_in_step(self) -> bool:
        """Return whether `step` scales the gradients, instead of a pass before it."""
        return self.delayed_norm and bool(self._optimizer.defaults["fused"])

    def batch(self, model: torch.nn.Module) -> AbstractContextManager[None]:
        """Return a context for a batch's forward and backward pass: see `GradientSums.batch`.

        `model` is the trainer's, wrapped if there are several processes.
        """
        sums = self._sums_of(model)
        return nullcontext() if sums is None else sums.batch()

    def _sums_of(self, module: torch.nn.Module) -> GradientSums | None:
        ddp: Any = getattr(module, "module", None)
        if ddp not in self._sums and can_sum(ddp):
            self._sums[ddp] = GradientSums(ddp, 1 if self._scales_in_step else ddp.world_size)
        return self._sums.get(ddp)

    def all_reduce_grads(self, module: torch.nn.Module) -> None:
        """Average gradients over processes, with `legacy_ddp` by `GradientSums`."""
        sums = self._sums_of(module)
        if sums is None:
            super().all_reduce_grads(module)
        else:
            sums.finish()
            self._factor = self._factor * sums.to_average

    def multiply_grads(self, c: float | Tensor) -> None:
        self._factor = self._factor * c
        if not self._scales_in_step:
            self._scale_now()

    def _scale_now(self) -> None:
        if gradients := self._gradients():
            torch._foreach_mul_(gradients, self._factor)
        self._factor = 1.0

    def clip_grad_norm(
        self, max_norm: float, aggregate_norm_fn: Callable[[Tensor], Tensor] | None = None
    ) -> Tensor:
        """Scale gradients to a joint norm of at most `max_norm` (0: leave them).

        Returns the norm before clipping. With `delayed_norm` on a GPU it is the previous update's,
        on the CPU (`DelayedFetch`): fairseq logs it, and stops if it is not finite, one update
        later. `step` leaves weights alone if gradients are not finite, so none are lost.
        """
        gradients = self._gradients()
        if aggregate_norm_fn is not None or not gradients:
            self._scale_now()
            return super().clip_grad_norm(max_norm, aggregate_norm_fn)
        norm = torch.stack(torch._foreach_norm(gradients)).norm() * self._factor
        if max_norm > 0:
            self.multiply_grads((max_norm / (norm + 1e-6)).clamp(max=1.0))
        if not self._scales_in_step:
            return norm
        self._optimizer.found_inf = (~norm.isfinite()).float()  # type: ignore[attr-defined]
        return self._fetch(norm)

    def step(self, *args: Any, **kwargs: Any) -> None:
        if self._scales_in_step:
            factor = self._factor
            if not isinstance(factor, Tensor):  # without clipping
                # Filled on the GPU, because a copy from the CPU would synchronise.
                device = self.param_groups[0]["params"][0].device
                factor = torch.full((), factor, dtype=torch.float32, device=device)
            # The optimiser divides gradients by this.
            self._optimizer.grad_scale = factor.float().reciprocal()  # type: ignore[attr-defined]
        super().step(*args, **kwargs)
        self._factor = 1.0

    def zero_grad(self) -> None:
        """Drop all gradients and their pending factor."""
        super().zero_grad()
        self._factor = 1.0
        for sums in self._sums.values():
            sums.begin()
