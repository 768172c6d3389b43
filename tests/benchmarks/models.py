"""Base models (tiny ones on a CPU) and their optimisers, ours and fairseq's, for benchmarks."""

import os
from collections.abc import Callable
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
from fairseq import optim
from fairseq.optim.adam import FairseqAdam
from omegaconf import OmegaConf

from music_ssl_fairseq.frames import DEFAULT_CONV_LAYERS
from music_ssl_fairseq.optim.fused_adamw import FusedAdamW, FusedAdamWConfig
from tests import tiny

GPU = torch.cuda.is_available()
DEVICE = torch.device("cuda" if GPU else "cpu")
BASE = {
    "conv_feature_layers": DEFAULT_CONV_LAYERS,
    "encoder_layers": 12,
    "encoder_embed_dim": 768,
    "encoder_ffn_embed_dim": 3072,
    "encoder_attention_heads": 12,
    "conv_pos_groups": 16,
    "dropout": 0.1,
    "attention_dropout": 0.1,
}
SIZES = BASE if GPU else tiny.SIZES
HUBERT = {"final_dim": 256, "mask_prob": 0.8, "dropout_input": 0.1, "feature_grad_mult": 0.1}
TOP_K = {"average_top_k_layers": 8 if GPU else 2}


def update_step(
    model: Any, optimiser: Any, loss_and_size: Callable[[], tuple[Any, Any]]
) -> Callable[[], None]:
    """A closure that trains a fairseq model for one update, as fairseq's trainer does."""
    update = 0

    def step() -> None:
        nonlocal update
        model.set_num_updates(update)
        optimiser.zero_grad()
        loss, size = loss_and_size()
        optimiser.backward(loss)
        optimiser.multiply_grads(1 / size)
        try:
            optimiser.clip_grad_norm(10.0)
        except OverflowError:  # fairseq's fp16 has lowered its loss scale, and skips the batch
            return
        optimiser.step()
        update += 1

    return step


def our_optimiser(model: Any, lr: float = 1e-4) -> FusedAdamW:
    """What `examples/` configure, as our tasks use it."""
    cfg = OmegaConf.merge(OmegaConf.structured(FusedAdamWConfig()), {"lr": [lr]})
    optimiser = FusedAdamW(cfg, model.parameters())
    optimiser.delayed_norm = True
    return optimiser


def stock_optimiser(model: Any, lr: float = 1e-4) -> Any:
    """fairseq's adam, in its fp16 wrapper (fp32 on a CPU), with the values of its recipes."""
    adam = {"adam_betas": "(0.9,0.98)", "adam_eps": 1e-6, "weight_decay": 0.01, "lr": [lr]}
    adam |= {"tpu": False, "fp16_adam_stats": False, "use_old_adam": False, "_name": "adam"}
    parameters = [p for p in model.parameters() if p.requires_grad]
    if GPU:
        cfg = OmegaConf.create(
            {
                "common": {
                    **{"fp16_init_scale": 1, "fp16_scale_window": 1000, "bf16": False},
                    **{"fp16_scale_tolerance": 0.0, "min_loss_scale": 1e-4, "fp16": True},
                    **{"threshold_loss_scale": None, "fp16_no_flatten_grads": False},
                    **{"on_cpu_convert_precision": False, "model_parallel_size": 1},
                },
                "optimization": {"update_freq": [1], "lr": [lr]},
                "distributed_training": {"distributed_world_size": 1, "pipeline_model_parallel": 0},
                "optimizer": adam,
                "bmuf": {},
            }
        )
        return optim.FP16Optimizer.build_optimizer(cfg, parameters)
    return FairseqAdam(OmegaConf.create(adam), parameters)
