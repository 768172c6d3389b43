"""The optimiser and the learning rate schedule against fairseq's own."""

import copy

import pytest
import torch
from fairseq.optim.adam import FairseqAdam, FairseqAdamConfig
from fairseq.optim.lr_scheduler.tri_stage_lr_scheduler import TriStageLRSchedule
from omegaconf import OmegaConf

from music_ssl_fairseq.errors import InputError
from music_ssl_fairseq.optim.fused_adamw import FusedAdamW, FusedAdamWConfig
from music_ssl_fairseq.optim.muon import Muon, MuonConfig, _MuonAndAdamW
from music_ssl_fairseq.optim.tri_stage import TriStageAnyLength, TriStageLRScheduleConfig


def _optimiser(cls, dataclass, parameters, **fields):
    cfg = OmegaConf.merge(OmegaConf.structured(dataclass()), {"lr": [0.01], **fields})
    return cls(cfg, parameters)


def test_fused_adamw_updates_as_fairseqs_adam():
    start = torch.randn(7, 5)
    fields = {"adam_betas": "(0.9,0.98)", "adam_eps": 1e-12, "weight_decay": 0.01}
    theirs = {"tpu": False, "fp16_adam_stats": False}
    results = []
    for cls, dataclass, more in (
        (FusedAdamW, FusedAdamWConfig, {}),
        (FairseqAdam, FairseqAdamConfig, theirs),
    ):
        parameter = torch.nn.Parameter(start.clone())
        optimiser = _optimiser(cls, dataclass, [parameter], **fields, **more)
        generator = torch.Generator().manual_seed(0)
        for _ in range(5):
            parameter.grad = torch.randn(7, 5, generator=generator)
            optimiser.multiply_grads(0.5)
            norm = optimiser.clip_grad_norm(1.0)
            optimiser.step()
        results.append((parameter.detach(), norm))
    torch.testing.assert_close(results[0][0], results[1][0], rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(results[0][1], results[1][1])


def test_clipping_leaves_small_gradients_and_0_means_never():
    parameter = torch.nn.Parameter(torch.zeros(3))
    optimiser = _optimiser(FusedAdamW, FusedAdamWConfig, [parameter])
    parameter.grad = torch.tensor([3.0, 0.0, 4.0])
    assert optimiser.clip_grad_norm(0.0).item() == 5.0
    assert parameter.grad.norm().item() == 5.0
    optimiser.clip_grad_norm(10.0)
    assert parameter.grad.norm().item() == 5.0
    optimiser.clip_grad_norm(2.0)
    assert parameter.grad.norm().item() == pytest.approx(2.0, rel=1e-5)


@pytest.mark.parametrize("max_norm", [0.0, 2.0])
def test_gradients_are_scaled_on_the_way(max_norm):
    """As by loops of their own; and on a GPU without waiting for it, with clipping and without."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    results = []
    for late in (False, True):
        parameter = torch.nn.Parameter(torch.ones(3, device=device))
        optimiser = _optimiser(FusedAdamW, FusedAdamWConfig, [parameter])
        fused = torch.optim.AdamW([parameter], fused=True, **optimiser.optimizer_config)
        optimiser._optimizer = fused
        optimiser.delayed_norm = late
        for update in range(4):
            parameter.grad = torch.tensor([3.0, 0.1, 4.0 * update], device=device)
            optimiser.multiply_grads(0.5)
            optimiser.clip_grad_norm(max_norm)
            mode = torch.cuda.get_sync_debug_mode() if device == "cuda" else 0
            if device == "cuda" and update > 0:
                torch.cuda.set_sync_debug_mode("error")
            try:
                optimiser.step()
            finally:
                if device == "cuda":
                    torch.cuda.set_sync_debug_mode(mode)
        # Of Adam's update the scale of all gradients says nothing; of their means it does.
        results.append([parameter.detach(), fused.state[parameter]["exp_avg"]])
    torch.testing.assert_close(*results)


def _rates(cls, updates, ratio):
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimiser = _optimiser(FusedAdamW, FusedAdamWConfig, [parameter])
    cfg = OmegaConf.merge(
        OmegaConf.structured(TriStageLRScheduleConfig()),
        {"phase_ratio": ratio, "max_update": updates, "lr": [0.01]},
    )
    schedule = cls(cfg, optimiser)
    assert list(cfg.phase_ratio) == ratio
    return [schedule.step_update(update) for update in range(updates)]


def test_tri_stage_is_fairseqs():
    ratio = [0.25, 0.5, 0.25]
    assert _rates(TriStageAnyLength, 40, ratio) == _rates(TriStageLRSchedule, 40, ratio)


def test_tri_stage_of_two_updates():
    with pytest.raises(ZeroDivisionError):
        _rates(TriStageLRSchedule, 2, [0.5, 0.25, 0.25])
    rates = _rates(TriStageAnyLength, 2, [0.5, 0.25, 0.25])
    assert 0 < rates[0] <= rates[1] <= 0.01


def test_muon_updates_matrices_as_torchs_and_the_rest_as_adamw():
    generator = torch.Generator().manual_seed(0)
    tensors = [torch.randn(*s, generator=generator) for s in ((6, 4), (6, 4), (4, 9), (5, 3), (7,))]
    ours = [torch.nn.Parameter(t.clone()) for t in tensors]
    theirs = [torch.nn.Parameter(t.clone()) for t in tensors]
    for p in ours[:3]:
        p.layer_matrix = True
    muon = _optimiser(Muon, MuonConfig, ours, weight_decay=0.1)
    references = (
        torch.optim.Muon(theirs[:3], lr=0.01, weight_decay=0.1, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(theirs[3:], lr=0.01, betas=(0.9, 0.98), eps=1e-6, weight_decay=0.1),
    )
    for _ in range(4):
        for p, q in zip(ours, theirs, strict=True):
            p.grad = torch.randn(p.shape, generator=generator)
            q.grad = p.grad * 0.5
        muon.multiply_grads(0.5)
        muon.step()
        [reference.step() for reference in references]
    for p, q, start in zip(ours, theirs, tensors, strict=True):
        torch.testing.assert_close(p, q, rtol=1e-2, atol=1e-3)
        assert (p - start).abs().max() > 0.005
    copies = [torch.nn.Parameter(p.detach().clone()) for p in ours]
    for p in copies[:3]:
        p.layer_matrix = True
    again = _optimiser(Muon, MuonConfig, copies, weight_decay=0.1)
    again.load_state_dict(copy.deepcopy(muon.state_dict()))
    for p, q in zip(ours, copies, strict=True):
        p.grad = q.grad = torch.ones(p.shape)
    muon.step()
    again.step()
    torch.testing.assert_close(ours, copies, rtol=0, atol=0)


def test_muon_leaves_weights_alone_if_gradients_are_not_finite():
    parameter = torch.nn.Parameter(torch.ones(3, 4))
    parameter.layer_matrix = True
    muon = _optimiser(Muon, MuonConfig, [parameter])
    parameter.grad = torch.full((3, 4), float("nan"))
    muon._optimizer = _MuonAndAdamW(
        [{"params": [parameter], "muon": True}], muon.cfg, fused=True, lr=0.01
    )
    muon.optimizer.found_inf = torch.tensor(1.0)
    muon.step()
    assert torch.equal(parameter, torch.ones(3, 4))
    assert not muon.optimizer.state[parameter]["momentum_buffer"].any()


def test_muon_without_matrices_says_so():
    with pytest.raises(InputError, match="no Transformer matrix"):
        _optimiser(Muon, MuonConfig, [torch.nn.Parameter(torch.ones(3, 4))])
