"""Muon: updates of weight matrices made orthogonal; AdamW for all other parameters."""

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from fairseq.optim import register_optimizer
from torch import Tensor

from music_ssl_fairseq.errors import InputError
from music_ssl_fairseq.optim.fused_adamw import FusedAdamW, FusedAdamWConfig
from music_ssl_fairseq.runtime.settings import ABOVE_0, BELOW_1, FROM_1, setting

_COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # of the quintic iteration (Jordan et al. 2024)


@dataclass
class MuonConfig(FusedAdamWConfig):
    """AdamW's fields, which all parameters but the layers' matrices use, and Muon's."""

    momentum: float = setting(0.95, "decay of the matrices' mean gradient", BELOW_1)
    update_rms: float = setting(
        0.2,
        "root mean square of a matrix's update, times the learning rate. AdamW's have about "
        "0.2 (Liu et al. 2025, section 2.2), so that both share one rate",
        ABOVE_0,
    )
    iterations: int = setting(5, "Newton-Schulz iterations per update", FROM_1)


@register_optimizer("muon", dataclass=MuonConfig)
class Muon(FusedAdamW):
    """Muon (Jordan et al. 2024) with the scale of Liu et al. (2025, arXiv 2502.16982).

    Matrices are the weights of the Transformer layers' linear maps: parameters whose attribute
    `layer_matrix` is true. Scaling, clipping and sums over processes are `FusedAdamW`'s.

    Raises InputError if no parameter is such a matrix, as with fairseq's fp16 copies.
    """

    def _build(self, tensors: list[Tensor], fused: bool) -> torch.optim.AdamW:
        matrices = [p for p in tensors if getattr(p, "layer_matrix", False)]
        if not matrices:
            raise InputError(
                "optimizer._name=muon found no Transformer matrix to train: leave common.fp16 and "
                "common.bf16 off (model.precision does that), or use optimizer._name=fused_adamw"
            )
        chosen = {id(p) for p in matrices}
        others = [p for p in tensors if id(p) not in chosen]
        groups = [{"params": others, "muon": False}, {"params": matrices, "muon": True}]
        return _MuonAndAdamW(groups, self.cfg, fused=fused, **self.optimizer_config)

    @property
    def supports_flat_params(self) -> bool:
        """Return False: a matrix is updated as a whole."""
        return False


class _MuonAndAdamW(torch.optim.AdamW):
    """AdamW whose groups with `muon` are updated by Muon. Its state has one momentum per matrix.

    torch.optim.Muon updates one matrix at a time, and knows neither `grad_scale` nor `found_inf`.
    """

    def __init__(self, groups: list[dict[str, Any]], cfg: MuonConfig, **adamw: Any):
        super().__init__(groups, **adamw)
        self._cfg = cfg

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """Update all parameters; none if `found_inf` is 1."""
        groups = self.param_groups
        try:
            self.param_groups = [group for group in groups if not group["muon"]]
            loss = super().step(closure)
        finally:
            self.param_groups = groups
        for group in groups:
            if group["muon"]:
                for matrices in _by_shape(group["params"]):
                    self._update(matrices, group["lr"], group["weight_decay"])
        return loss

    def _update(self, matrices: list[Tensor], lr: float, weight_decay: float) -> None:
        """Update matrices of one shape, stacked: a product of many costs as much as of few."""
        grads = torch.stack([p.grad for p in matrices if p.grad is not None]).float()
        scale, found_inf = getattr(self, "grad_scale", None), getattr(self, "found_inf", None)
        if scale is not None:
            grads /= scale
        keep = torch.ones((), device=grads.device) if found_inf is None else 1 - found_inf
        grads = torch.where(keep > 0, grads, 0.0)
        buffers = [self._momentum(p) for p in matrices]
        momentum = torch.stack(buffers).lerp(grads, (1 - self._cfg.momentum) * keep)
        torch._foreach_copy_(buffers, list(momentum.unbind()))
        updates = orthogonal(grads.lerp(momentum, self._cfg.momentum), self._cfg.iterations)
        # Orthogonal matrices [N, R, C] times this have a root mean square of `update_rms`.
        factor = self._cfg.update_rms * max(updates.shape[-2:]) ** 0.5
        updates = updates.float() * (-lr * factor * keep)
        torch._foreach_mul_(matrices, 1 - lr * weight_decay * keep)
        torch._foreach_add_(matrices, list(updates.unbind()))

    def _momentum(self, matrix: Tensor) -> Tensor:
        state = self.state[matrix]
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(matrix)
            state["step"] = torch.zeros(())  # which AdamW expects of every state that it loads
        return state["momentum_buffer"]


def _by_shape(parameters: list[Tensor]) -> Iterable[list[Tensor]]:
    shapes: dict[torch.Size, list[Tensor]] = defaultdict(list)
    for p in parameters:
        if p.grad is not None:
            shapes[p.shape].append(p)
    return shapes.values()


def orthogonal(matrices: Tensor, iterations: int) -> Tensor:
    """Replace the singular values of matrices `[N, R, C]` by about 1 (0.7 to 1.2), in bf16.

    Each of the `iterations` of Newton-Schulz takes three products.
    """
    a, b, c = _COEFFICIENTS
    x = matrices.bfloat16()
    tall = x.shape[-2] > x.shape[-1]
    if tall:
        x = x.mT
    x = x / x.norm(dim=(-2, -1), keepdim=True).clamp(min=1e-7)
    for _ in range(iterations):
        gram = x @ x.mT
        polynomial = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
        x = torch.baddbmm(x, polynomial, x, beta=a)
    return x.mT if tall else x
