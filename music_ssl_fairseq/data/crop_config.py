"""Settings of crops and masks: the part of a pre-training task's that its dataset reads."""

from dataclasses import dataclass
from typing import Any, Optional

from fairseq.dataclass import FairseqDataclass
from omegaconf import II, OmegaConf

from music_ssl_fairseq.data.masks import MASK_MODES, CropMasks, SpanGrowth
from music_ssl_fairseq.errors import InputError
from music_ssl_fairseq.runtime.settings import (
    ABOVE_0,
    FROM_0,
    FROM_1,
    UP_TO_1,
    changeable,
    copied,
    setting,
)


@dataclass
class CropConfig(FairseqDataclass):
    crop_seconds: float = setting(
        5.0, "seconds of a training crop; fairseq: max_sample_size, in samples", ABOVE_0
    )
    min_seconds: float = setting(
        2.0, "tracks of fewer seconds are left out; fairseq: min_sample_size", FROM_0
    )
    crops_per_track: Optional[int] = setting(
        None,
        "crops of each track per epoch; by default as many as its length holds. fairseq takes "
        "one, whatever the length",
        FROM_1,
    )
    normalize: bool = setting(False, "give each crop mean 0 and variance 1")
    mix_prob: float = setting(
        0.0,
        "share of training crops to which a quieter other crop of the batch is added, 6 to 20 dB "
        "below; labels stay. Which crop it is depends on the batch. Not in fairseq",
        UP_TO_1,
    )
    equaliser_db: float = setting(
        0.0,
        "largest gain, in dB, of a smooth random filter on each training crop; labels are "
        "of the unfiltered music. 0 for no filter. Not in fairseq",
        FROM_0,
    )
    mask_length_start: Optional[int] = setting(
        None,
        "a curriculum: frames of a mask span in the first epoch. Spans grow evenly to "
        "model.mask_length, as many frames are masked throughout. Validation has the final "
        "length. Not in fairseq",
    )
    mask_growth_epochs: int = setting(10, "epochs over which spans grow from mask_length_start")
    max_unreadable: float = changeable(
        0.1,
        "share of tracks that may prove unreadable, and be replaced by crops of others, before "
        "training stops",
        UP_TO_1,
    )
    seed: int = setting(
        II("common.seed"), "crops and masks follow from this, the epoch and the crop's index alone"
    )
    # Optional, because fairseq-validate passes null for what its command line does not name.
    mask_prob: Optional[float] = copied("model.mask_prob")
    mask_length: Optional[int] = copied("model.mask_length")
    mask_mode: Optional[str] = copied("model.mask_mode")
    encode: Optional[str] = copied("model.encode")
    clone_batch: Optional[int] = copied("model.clone_batch")
    conv_feature_layers: Optional[str] = copied("model.conv_feature_layers")


def crop_masks(cfg: Any, min_spans: int) -> CropMasks:
    """Return how a `CropConfig` draws a crop's masks, each of at least `min_spans` spans.

    Raises InputError if settings do not fit together.
    """
    mode = _of_model(cfg, "mask_mode", "fixed")
    visible = _of_model(cfg, "encode", "all") == "visible"
    number = _of_model(cfg, "clone_batch", 1)
    first = cfg.mask_length_start
    of_fixed = {"model.encode=visible": visible, f"model.clone_batch={number}": number > 1}
    of_fixed[f"task.mask_length_start={first}"] = first is not None
    for given, used in of_fixed.items():
        if used and mode != "fixed":
            raise InputError(
                f"{given} does not go with model.mask_mode={mode}, whose number of masked "
                "frames depends on the batch: take model.mask_mode=fixed"
            )
    growth = None
    if first is not None:
        growth = SpanGrowth(first, cfg.mask_length or 0, cfg.mask_growth_epochs)
    spans = MASK_MODES[mode](cfg.mask_prob, cfg.mask_length, min_spans)
    return CropMasks(spans, growth, number, visible)


def _of_model(cfg: Any, name: str, default: Any) -> Any:
    """Return a setting of the model, which early checkpoints may not have."""
    value = OmegaConf.select(cfg, name, throw_on_resolution_failure=False)
    return default if value is None else value
