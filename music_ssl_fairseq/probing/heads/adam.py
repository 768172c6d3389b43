"""Adam for heads, each at its own learning rate, and for an encoder that is trained along."""

import ast
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from fairseq.dataclass import FairseqDataclass
from fairseq.optim import FairseqOptimizer, register_optimizer
from torch import Tensor

from music_ssl_fairseq.runtime.settings import ABOVE_0, setting

SHARE = "share_of_rate"
"""Attribute of an encoder's parameters: their learning rate as a share of the head's."""


class EncoderAdam(torch.optim.Adam):
    """torch's Adam for parameters with a `SHARE`; rates fall with the head's."""

    def __init__(self, parameters: Sequence[Tensor], betas: tuple[float, float], eps: float):
        self._shares = sorted({getattr(p, SHARE) for p in parameters})
        groups = [
            {"params": [p for p in parameters if getattr(p, SHARE) == share]}
            for share in self._shares
        ]
        super().__init__(groups, betas=betas, eps=eps)

    def gradients(self) -> list[Tensor]:
        """Return the gradients that there are: none while the encoder is frozen."""
        parameters = (p for group in self.param_groups for p in group["params"])
        return [p.grad for p in parameters if p.grad is not None]

    def clip(self, max_norm: float, scale: float) -> Tensor:
        """Bound the norm of the gradients times `scale`, unless `max_norm` is 0; return it."""
        gradients = self.gradients()
        if not gradients:
            return torch.zeros(())
        norm = torch.nn.utils.get_total_norm(gradients) * scale
        if max_norm > 0:
            torch._foreach_mul_(gradients, (max_norm / (norm + 1e-6)).clamp(max=1.0))
        return norm

    def update(self, rate: float, scale: float) -> None:
        """Update at shares of the head's `rate`, with gradients times `scale`."""
        gradients = self.gradients()
        if gradients:
            torch._foreach_mul_(gradients, scale)
        for group, share in zip(self.param_groups, self._shares, strict=True):
            group["lr"] = rate * share
        self.step()


class _RateGroup(NamedTuple):
    """Heads of one learning rate: their places, and views of each parameter's tensors."""

    rate: float
    heads: list[int]
    values: list[Tensor]
    means: list[Tensor]
    squares: list[Tensor]
    steps: list[Tensor]


@dataclass
class RowAdamConfig(FairseqDataclass):
    adam_betas: str = setting("(0.9,0.999)", "decay of the gradient's mean and mean square")
    adam_eps: float = setting(1e-8, "added to the root of the mean square; torch's Adam", ABOVE_0)


@register_optimizer("row_adam", dataclass=RowAdamConfig)
class RowAdam(FairseqOptimizer):  # checkpoints hold this name, and refuse another
    """Call torch's fused Adam once per learning rate. `set_heads` gives heads and their rates.

    fairseq's learning rate is a factor on top: leave it at 1. `get_lr` is the highest rate of any
    head, and 0 when none is left, so that `optimization.stop_min_lr: 0` ends the training.

    An encoder that is trained along (`model.unfreeze`) has an Adam of its own.
    """

    def __init__(self, cfg: RowAdamConfig, params: Iterable[Tensor]):
        super().__init__(cfg)
        betas = tuple(ast.literal_eval(str(cfg.adam_betas)))
        parameters = list(params)
        encoder = [p for p in parameters if hasattr(p, SHARE)]
        parameters = [p for p in parameters if not hasattr(p, SHARE)]
        self._encoder = EncoderAdam(encoder, betas, cfg.adam_eps) if encoder else None
        # It holds parameters and moments where fairseq looks for them; its own step is not used.
        self._optimizer = torch.optim.Adam(
            parameters, lr=1.0, betas=(betas[0], betas[1]), eps=cfg.adam_eps
        )
        self._heads: list[int] | None = None
        self._rates: list[float] = []
        self._scale = 1.0
        self._groups: list[_RateGroup] = []
        self._groups_of: object = None

    @property
    def optimizer_config(self) -> dict[str, Any]:
        """Settings that the command line may change when a checkpoint is loaded."""
        return {"eps": self.cfg.adam_eps}

    def set_heads(self, heads: Sequence[int], rates: Sequence[float]) -> None:
        """Keep the moments of these heads (numbers in the grid), and set their rates."""
        if self._heads is not None and list(heads) != self._heads:
            kept = torch.tensor([self._heads.index(head) for head in heads], dtype=torch.long)
            for state in self._optimizer.state.values():
                state.update({k: v[kept.to(v.device)] for k, v in state.items()})
        self._heads, self._rates = list(heads), list(rates)

    def get_lr(self) -> float:
        """Return the highest learning rate of any head."""
        factor = self._optimizer.param_groups[0]["lr"]
        if self._heads is None:
            return factor
        return factor * max(self._rates, default=0.0)

    def multiply_grads(self, c: float | Tensor) -> None:
        """Remember the factor, which `step` applies without another pass over the gradients."""
        self._scale *= float(c)

    def zero_grad(self) -> None:
        """Forget gradients and factor."""
        self._scale = 1.0
        super().zero_grad()
        if self._encoder is not None:
            self._encoder.zero_grad()

    def clip_grad_norm(
        self, max_norm: float, aggregate_norm_fn: Callable[[Tensor], Tensor] | None = None
    ) -> Tensor:
        """Return the gradients' norm without the largest parameter's, a tenth of the step's time.

        Diverged heads are left out. Heads are not clipped: it would tie them together.
        """
        if self._encoder is not None:
            clipped = self._encoder.clip(max_norm, self._scale)
            return torch.stack([self._heads_norm().to(clipped.device), clipped]).norm()
        return self._heads_norm()

    def _heads_norm(self) -> Tensor:
        largest = max(self.params, key=Tensor.numel)
        gradients = [
            p.grad for p in self.params if p is not largest and p.grad is not None and p.numel()
        ]
        if not gradients:
            return torch.zeros(())
        norms = torch.stack([gradient.flatten(1).norm(dim=1) for gradient in gradients]).norm(dim=0)
        return torch.where(norms.isfinite(), norms, 0.0).norm() * self._scale

    @torch.no_grad()
    def step(self, closure: Any = None, scale: float = 1.0, groups: Any = None) -> None:
        """Update each head at its own rate, and the encoder's layers."""
        if self._encoder is not None and self._rates:
            self._encoder.update(self.get_lr(), self._scale / scale)
        parameters = [p for p in self.params if p.grad is not None and p.numel()]
        if not parameters:
            return
        torch._foreach_add_([self._state(p)["step"] for p in parameters], 1)
        gradients = [p.grad.unbind() for p in parameters if p.grad is not None]
        adam = self._optimizer.param_groups[0]
        # Made on the device: a copy to it would wait for all that runs there.
        inverse_scale = torch.full((), scale / self._scale, device=parameters[0].device)
        for group in self._grouped(parameters):
            torch._fused_adam_(
                group.values,
                [views[i] for views in gradients for i in group.heads],
                *(group.means, group.squares, [], group.steps),
                lr=group.rate * adam["lr"],
                beta1=adam["betas"][0],
                beta2=adam["betas"][1],
                weight_decay=0.0,
                eps=adam["eps"],
                amsgrad=False,
                maximize=False,
                grad_scale=inverse_scale,  # the kernel divides by it
            )

    def _grouped(self, parameters: Sequence[Tensor]) -> "list[_RateGroup]":
        """Return the heads of each rate; views are made again only if a tensor is another one.

        Hundreds of views per update would take longer than the update itself.
        """
        names = ("exp_avg", "exp_avg_sq", "step")
        kinds = [parameters, *([self._state(p)[name] for p in parameters] for name in names)]
        made_of = self._rates, [tensor.data_ptr() for kind in kinds for tensor in kind]
        if made_of != self._groups_of:
            views = [[tensor.unbind() for tensor in kind] for kind in kinds]
            self._groups = []
            for rate in dict.fromkeys(self._rates):
                heads = [i for i, other in enumerate(self._rates) if other == rate]
                parts = ([part[i] for part in kind for i in heads] for kind in views)
                self._groups.append(_RateGroup(rate, heads, *parts))
            self._groups_of = made_of
        return self._groups

    def _state(self, parameter: Tensor) -> dict[str, Tensor]:
        """Return moments and number of updates of a parameter; zeros before the first."""
        state = self._optimizer.state[parameter]
        if not state:
            state["exp_avg"] = torch.zeros_like(parameter)
            state["exp_avg_sq"] = torch.zeros_like(parameter)
            state["step"] = torch.zeros(len(parameter), device=parameter.device)
        return state

    def state_dict(self) -> dict[str, Any]:
        """Return the heads' numbers and rates, and the state of each parameter in order."""
        states = [dict(self._optimizer.state[p]) for p in self.params]
        found: dict[str, Any] = {"rows": self._heads, "rates": self._rates, "states": states}
        if self._encoder is not None:
            found["encoder"] = self._encoder.state_dict()
        return found

    def load_state_dict(
        self, state_dict: dict[str, Any], optimizer_overrides: dict[str, Any] | None = None
    ) -> None:
        """Take over a state of the same heads."""
        self._heads, self._rates = state_dict["rows"], state_dict["rates"]
        for p, state in zip(self.params, state_dict["states"], strict=True):
            self._optimizer.state[p] = {k: v.to(p.device) for k, v in state.items()}
        if self._encoder is not None:
            self._encoder.load_state_dict(state_dict["encoder"])
