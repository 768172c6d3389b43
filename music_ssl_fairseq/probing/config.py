"""Settings of a probe: the fields of fairseq's `task` and `model` groups."""

from dataclasses import dataclass
from typing import List, Optional

from fairseq.dataclass import ChoiceEnum, FairseqDataclass
from omegaconf import II, MISSING

from music_ssl_fairseq.runtime.settings import (
    ABOVE_0,
    BELOW_1,
    FROM_0,
    FROM_1,
    changeable,
    copied,
    setting,
)

LEARNING_RATES = [5e-5, 1e-4, 5e-4, 1e-3, 5e-3, 1e-2]


# Optional[...] instead of `| None`: fairseq's parser needs it. fairseq-validate passes null for the
# fields that its command line does not name.
@dataclass
class ProbingTaskConfig(FairseqDataclass):
    data: str = changeable(
        MISSING, "folder with task.json, manifests and labels (python -m manifests_tools NAME)"
    )
    expected: Optional[str] = changeable(
        None,
        "name of the task that this configuration is for; a folder that holds another one is "
        "refused. null for any",
    )
    window_seconds: float = setting(
        5.0,
        "seconds of the encoder's input windows; 0 for whole clips. Scores of a clip are means "
        "over its windows",
        FROM_0,
    )
    cache_dir: str = changeable(
        "feature_cache", "folder of cached features; several tasks and runs may share it"
    )
    cache_limit_gb: float = changeable(
        50.0, "largest size of the cache; the least recently used features go first", FROM_0
    )
    output_dir: str = changeable(
        "probe", "folder of probe.json, rows.csv, test.json and predictions"
    )
    decoder: str = changeable(
        "dbn",
        "from activations to beats: dbn (dynamic Bayesian network), librosa (dynamic programming) "
        "or peaks",
    )
    trackio_project: Optional[str] = changeable(
        None,
        "project of trackio to log to, here and without an account; common.wandb_project logs to "
        "Weights & Biases",
    )
    save_seconds: float = changeable(
        20.0,
        "least time between two checkpoints of heads in training: a hundred heads are 400 MB. The "
        "last checkpoint is always written",
        FROM_0,
    )
    upstream: Optional[str] = copied("model.upstream")
    upstream_seed: Optional[int] = copied("model.upstream_seed")
    last_epoch: Optional[int] = copied("optimization.max_epoch")
    cpu: bool = changeable(II("common.cpu"), "compute features without a GPU")
    seed: int = setting(II("common.seed"), "seed of the order of windows in training")


@dataclass
class HeadGridConfig(FairseqDataclass):
    upstream: str = changeable(
        MISSING,
        "what is probed: a checkpoint of this package or of fairseq's HuBERT, data2vec or wav2vec "
        "2.0, a Hugging Face folder, `random:` and one of these for the same model with random "
        "weights, or a front end without training: mfcc, chroma, logmel, cqt",
    )
    upstream_seed: int = changeable(0, "seed of random weights")
    layers: Optional[str] = setting(
        None,
        "layers to probe, separated by commas: 0 is the projected extractor output, `all` the "
        "learned weighted sum of the Transformer's; by default every one, and all",
    )
    learning_rates: List[float] = setting(
        LEARNING_RATES, "each layer is probed with each of these", ABOVE_0
    )
    unfreeze: str = setting(
        "none",
        "encoder layers that are trained with the head: none, all, or top-N for the last N "
        "Transformer layers. With all or top-N: one layer in `layers`, and one of `learning_rates`",
    )
    encoder_learning_rate: float = setting(
        1e-5, "learning rate of the highest unfrozen layer", ABOVE_0
    )
    layer_decay: float = setting(
        1.0, "factor on the rate from each encoder layer to the one below it", ABOVE_0
    )
    frozen_updates: int = setting(
        0, "updates at the start in which the head alone is trained", FROM_0
    )
    precision: ChoiceEnum(["auto", "fp32", "bf16"]) = changeable(  # type: ignore[valid-type]
        "auto", "arithmetic of an unfrozen encoder; auto is bf16 on GPUs that have it"
    )
    hidden_size: int = setting(512, "hidden values of a head", FROM_1)
    dropout: float = setting(0.2, "dropout of the hidden values", BELOW_1)
    patience: int = setting(8, "epochs without a better validation that stop a head", FROM_1)
    lr_patience: int = setting(3, "epochs without a better validation that reduce its rate", FROM_0)
    lr_factor: float = setting(0.5, "factor of a reduction of the rate", ABOVE_0)
    seed: int = setting(
        II("common.seed"),
        "seed of parameters and dropout; each head draws from (seed, layer, rate)",
    )


PROBE_CONFIGS = {"task": ProbingTaskConfig, "model": HeadGridConfig}
"""Dataclass of each group of fairseq's configuration that is a probe's own."""
