"""Adam for parameters whose first dimension is a row, each row with a learning rate of its own."""

import ast
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from fairseq.dataclass import FairseqDataclass
from fairseq.optim import FairseqOptimizer, register_optimizer
from torch import Tensor

_LARGE = 2**16


@dataclass
class RowAdamConfig(FairseqDataclass):
    adam_betas: str = field(
        default="(0.9,0.999)", metadata={"help": "decay of the gradient's mean and mean square"}
    )
    adam_eps: float = field(
        default=1e-8, metadata={"help": "added to the root of the mean square; torch's Adam"}
    )


@dataclass
class AdamOfRow:
    """torch's fused Adam, which passes over memory once, for a row of each parameter."""

    values: list[Tensor]
    means: list[Tensor]
    squares: list[Tensor]
    steps: list[Tensor]
    rate: float
    betas: tuple[float, float]
    eps: float

    def step(self, gradients: list[Tensor], gradient_scale: float = 1.0) -> None:
        """One update; gradients are multiplied by `gradient_scale` on the way."""
        if not gradients:
            return
        for step in self.steps:
            step += 1
        torch._fused_adam_(
            self.values,
            gradients,
            self.means,
            self.squares,
            [],
            self.steps,
            lr=self.rate,
            beta1=self.betas[0],
            beta2=self.betas[1],
            weight_decay=0.0,
            eps=self.eps,
            amsgrad=False,
            maximize=False,
            # The kernel divides by its scale while it has the numbers at hand.
            grad_scale=None if gradient_scale == 1.0 else torch.tensor(1 / gradient_scale),
        )


class _Rows(torch.optim.Optimizer):
    """What fairseq wants to find inside its optimizer; the state is kept by rows."""

    def __init__(self, params: list[Tensor], betas: tuple[float, float], eps: float):
        super().__init__(params, {"lr": 1.0, "betas": betas, "eps": eps})

    def tensors(self) -> list[Tensor]:
        return self.param_groups[0]["params"]

    def prepare(self, parameters: Iterable[Tensor]) -> None:
        """Make place for the moments of parameters that have none yet."""
        for p in parameters:
            if not self.state[p]:
                self.state[p] = {
                    "exp_avg": torch.zeros_like(p),
                    "exp_avg_sq": torch.zeros_like(p),
                    "step": torch.zeros(len(p), device=p.device),
                }

    @torch.no_grad()
    def step_rows(self, rates: Sequence[float], gradient_scale: float) -> None:
        """One update; gradients are multiplied by `gradient_scale` on the way."""
        with_gradient = [p for p in self.tensors() if p.grad is not None]
        self.prepare(with_gradient)
        if not with_gradient or not rates:
            return
        # On a CPU passes over memory count most, on a GPU and for small tensors calls do.
        large = [p for p in with_gradient if not p.is_cuda and p[0].numel() >= _LARGE]
        small = [p for p in with_gradient if p.is_cuda or p[0].numel() < _LARGE]
        for row, rate in enumerate(rates):
            gradients = [p.grad[row] for p in large if p.grad is not None]
            self.of_row(row, rate, large).step(gradients, gradient_scale)
        self._step_together(small, rates, gradient_scale)

    def of_row(self, row: int, rate: float, parameters: Sequence[Tensor]) -> "AdamOfRow":
        """The update of one row of these parameters."""
        group = self.param_groups[0]
        states = [self.state[p] for p in parameters]
        return AdamOfRow(
            [p.detach()[row] for p in parameters],
            [state["exp_avg"][row] for state in states],
            [state["exp_avg_sq"][row] for state in states],
            [state["step"][row] for state in states],
            rate * group["lr"],
            group["betas"],
            group["eps"],
        )

    def _step_together(
        self, tensors: list[Tensor], rates: Sequence[float], gradient_scale: float
    ) -> None:
        """The same for all rows at once, with as few calls as there can be."""
        group = self.param_groups[0]
        beta1, beta2 = group["betas"]
        on_cpu = torch.tensor(rates, dtype=torch.float32).mul_(group["lr"])
        for p in tensors:
            gradient = p.grad
            assert gradient is not None
            factors = on_cpu.to(p.device, non_blocking=True)
            state = self.state[p]
            by_row = (-1, *[1] * (p.ndim - 1))
            step = state["step"].add_(1)
            first, second = 1 - beta1**step, 1 - beta2**step
            if gradient_scale != 1.0:
                gradient.mul_(gradient_scale)
            state["exp_avg"].lerp_(gradient, 1 - beta1)
            state["exp_avg_sq"].mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
            root = state["exp_avg_sq"].sqrt().div_(second.sqrt().view(by_row)).add_(group["eps"])
            p.sub_(root.reciprocal_().mul_(state["exp_avg"]).mul_((factors / first).view(by_row)))


@register_optimizer("row_adam", dataclass=RowAdamConfig)
class RowAdam(FairseqOptimizer):
    """torch's Adam, fused, row by row. `set_rows` says which rows there are, and their rates.

    fairseq's learning rate is a factor on top: leave it at 1. What it sees as the learning rate is
    the highest of the rows', and 0 when none is left, so that `optimization.stop_min_lr: 0` ends
    the training.
    """

    def __init__(self, cfg: RowAdamConfig, params: Iterable[Tensor]):
        super().__init__(cfg)
        betas = tuple(ast.literal_eval(str(cfg.adam_betas)))
        self._optimizer = _Rows(list(params), (betas[0], betas[1]), cfg.adam_eps)
        self._rows: list[int] | None = None
        self._rates: list[float] = []
        self._scale = 1.0
        self.norm = torch.zeros(())

    @property
    def optimizer_config(self) -> dict[str, Any]:
        """What the command line may change when a checkpoint is loaded."""
        return {"eps": self.cfg.adam_eps}

    def set_rows(self, rows: Sequence[int], rates: Sequence[float]) -> None:
        """Follow the model: `rows` (numbers in the grid) are left of it, with these rates."""
        if self._rows is not None and list(rows) != self._rows:
            kept = torch.tensor([self._rows.index(row) for row in rows], dtype=torch.long)
            for state in self._optimizer.state.values():
                state.update({k: v[kept.to(v.device)] for k, v in state.items()})
        self._rows, self._rates = list(rows), list(rates)

    def prepare(self) -> None:
        """Before `of_row`: make place for the moments."""
        self._optimizer.prepare(self._optimizer.tensors())

    def of_row(self, index: int, parameters: Sequence[Tensor]) -> AdamOfRow:
        """To update one row of these parameters with gradients that are kept elsewhere.

        Args:
            index: among the rows of `set_rows`.
        """
        return self._optimizer.of_row(index, self._rates[index], parameters)

    def get_lr(self) -> float:
        """The highest learning rate of any row."""
        factor = self._optimizer.param_groups[0]["lr"]
        if self._rows is None:
            return factor
        return factor * max(self._rates, default=0.0)

    def multiply_grads(self, c: float | Tensor) -> None:
        """Remember the factor: the update applies it, without another pass over all gradients."""
        self._scale *= float(c)

    def zero_grad(self) -> None:
        """Forget gradients and factor."""
        self._scale = 1.0
        super().zero_grad()

    def clip_grad_norm(
        self, max_norm: float, aggregate_norm_fn: Callable[[Tensor], Tensor] | None = None
    ) -> Tensor:
        """The norm of the gradients of all but the largest parameter, whose norm alone would take
        as long as a tenth of the step; `norm`, if gradients are kept elsewhere. Rows that have
        diverged are left out. Nothing is clipped: it would tie the rows together."""
        largest = max(self.params, key=Tensor.numel)
        gradients = [
            p.grad for p in self.params if p is not largest and p.grad is not None and p.numel()
        ]
        if not gradients:
            return self.norm
        rows = torch.stack([gradient.flatten(1).norm(dim=1) for gradient in gradients]).norm(dim=0)
        return torch.where(rows.isfinite(), rows, 0.0).norm() * self._scale

    def step(self, closure: Any = None, scale: float = 1.0, groups: Any = None) -> None:
        """Update each row at its own rate."""
        self._optimizer.step_rows(self._rates, self._scale / scale)

    def state_dict(self) -> dict[str, Any]:
        """Row numbers, and the state of each parameter in order."""
        states = [dict(self._optimizer.state[p]) for p in self._optimizer.tensors()]
        return {"rows": self._rows, "rates": self._rates, "states": states}

    def load_state_dict(
        self, state_dict: dict[str, Any], optimizer_overrides: dict[str, Any] | None = None
    ) -> None:
        """Take over a state of the same rows."""
        self._rows, self._rates = state_dict["rows"], state_dict["rates"]
        for p, state in zip(self._optimizer.tensors(), state_dict["states"], strict=True):
            self._optimizer.state[p] = {k: v.to(p.device) for k, v in state.items()}
