"""Settings of a probe: the fields of fairseq's `task` and `model` groups."""

from dataclasses import dataclass, field
from typing import List, Optional  # noqa: UP035 (fairseq's parser needs List)

from fairseq.dataclass import FairseqDataclass
from omegaconf import II, MISSING

LEARNING_RATES = [5e-5, 1e-4, 5e-4, 1e-3, 5e-3, 1e-2]


# Optional[...] instead of `| None`: fairseq's parser needs it. fairseq-validate passes null for the
# fields that its command line does not name.
@dataclass
class MusicProbingConfig(FairseqDataclass):
    data: str = field(
        default=MISSING,
        metadata={
            "help": "folder with task.json, manifests and labels (python -m manifests_tools NAME)"
        },
    )
    expected: Optional[str] = field(  # noqa: UP045
        default=None,
        metadata={
            "help": "name of the task that this configuration is for; a folder that holds another "
            "one is refused. null for any"
        },
    )
    window_seconds: float = field(
        default=5.0,
        metadata={
            "help": "length of the encoder's input windows; 0 for whole clips. Scores of a clip "
            "are means over its windows"
        },
    )
    cache_dir: str = field(
        default="feature_cache",
        metadata={"help": "folder of cached features; several tasks and runs may share it"},
    )
    cache_limit_gb: float = field(
        default=50.0,
        metadata={"help": "largest size of the cache; the least recently used features go first"},
    )
    output_dir: str = field(
        default="probe",
        metadata={"help": "folder of probe.json, rows.csv, test.json and predictions"},
    )
    decoder: str = field(
        default="dbn",
        metadata={
            "help": "from activations to beats: dbn (dynamic Bayesian network), librosa (dynamic "
            "programming) or peaks"
        },
    )
    save_seconds: float = field(
        default=20.0,
        metadata={
            "help": "least time between two checkpoints of heads in training: a hundred heads are "
            "400 MB. The last checkpoint is always written"
        },
    )
    upstream: Optional[str] = field(  # noqa: UP045
        default=II("model.upstream"), metadata={"help": "the model's; set it there"}
    )
    upstream_seed: Optional[int] = field(  # noqa: UP045
        default=II("model.upstream_seed"), metadata={"help": "the model's; set it there"}
    )
    last_epoch: Optional[int] = field(  # noqa: UP045
        default=II("optimization.max_epoch"), metadata={"help": "set it in optimization"}
    )
    cpu: bool = field(default=II("common.cpu"), metadata={"help": "compute features without a GPU"})
    seed: int = field(
        default=II("common.seed"), metadata={"help": "seed of the order of windows in training"}
    )


@dataclass
class MusicProbeConfig(FairseqDataclass):
    upstream: str = field(
        default=MISSING,
        metadata={
            "help": "what is probed: a checkpoint of this package or of fairseq's HuBERT, data2vec "
            "or wav2vec 2.0, a Hugging Face folder, `random:` and one of these for the same model "
            "with random weights, or a front end without training: mfcc, chroma, logmel, cqt"
        },
    )
    upstream_seed: int = field(default=0, metadata={"help": "seed of random weights"})
    layers: Optional[str] = field(  # noqa: UP045
        default=None,
        metadata={
            "help": "layers to probe, separated by commas: 0 is the projected extractor output, "
            "`all` the learned weighted sum of the Transformer's; by default every one, and all"
        },
    )
    learning_rates: List[float] = field(  # noqa: UP006
        default_factory=lambda: list(LEARNING_RATES),
        metadata={"help": "each layer is probed with each of these"},
    )
    hidden_size: int = field(default=512, metadata={"help": "hidden values of a head"})
    dropout: float = field(default=0.2, metadata={"help": "dropout of the hidden values"})
    patience: int = field(
        default=8, metadata={"help": "epochs without a better validation that stop a head"}
    )
    lr_patience: int = field(
        default=3, metadata={"help": "epochs without a better validation that reduce its rate"}
    )
    lr_factor: float = field(default=0.5, metadata={"help": "factor of a reduction of the rate"})
    seed: int = field(
        default=II("common.seed"),
        metadata={
            "help": "seed of parameters and dropout; each head draws from (seed, layer, rate)"
        },
    )
