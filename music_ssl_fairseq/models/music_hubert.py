"""musicHuBERT: HuBERT on music (Hsu et al. 2021; Ma et al., arXiv 2307.05161)."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from fairseq.dataclass import ChoiceEnum
from fairseq.models import register_model
from torch import Tensor, nn

from music_ssl_fairseq.bands import ConstantQ, MelBands
from music_ssl_fairseq.errors import InputError
from music_ssl_fairseq.frames import FrameGrid
from music_ssl_fairseq.models.random_projection import RandomProjection
from music_ssl_fairseq.models.unit_prediction import (
    EncoderWithUnitHeads,
    UnitHeadsConfig,
    frames_at,
)
from music_ssl_fairseq.modules.dropout import Drop, drop
from music_ssl_fairseq.modules.views import repeat_crops
from music_ssl_fairseq.runtime.settings import FROM_0, FROM_1, FROM_2, SHARE, setting

_SEMITONES = 12  # bands per octave whose random projections are units
_MEL_BANDS = 64  # bands whose random projections are units


@dataclass
class MusicHubertConfig(UnitHeadsConfig):
    mask_prob: float = setting(
        0.80,
        "share of frames covered by mask spans if spans did not overlap; fairseq's field has "
        "0.65, its HuBERT recipe 0.80",
        SHARE,
    )
    cqt_bands: int = setting(
        0,
        "bands per octave of a constant-Q transform that a linear head predicts at masked frames, "
        "beside the units (MERT, arXiv 2306.00107, section 3.2): 12 for semitones; 0 for no such "
        "head. Its weight is criterion.cqt_weight. Not in fairseq",
        FROM_0,
    )
    projection_targets: ChoiceEnum(["none", "logmel", "cqt"]) = setting(  # type: ignore[valid-type]
        "none",
        "units that need no labels: nearest random code of a frame's random projection (BEST-RQ, "
        "arXiv 2202.01855), of its log-mel bands or its constant-Q transform. Beside the sets of "
        "task.label_dir, or instead (task.label_dir=[]). Not in fairseq",
    )
    projection_sets: int = setting(1, "random projections, each with a head of its own", FROM_1)
    projection_size: int = setting(1024, "random codes per projection", FROM_2)
    skip_nomask: bool = setting(
        False,
        "compute nothing for unmasked frames in validation either, so that their loss and "
        "accuracy are not logged. In training they are computed only if they count "
        "(criterion.pred_nomask_weight); fairseq computes and logs them without",
    )


@register_model("music_hubert", dataclass=MusicHubertConfig)
class MusicHubertModel(EncoderWithUnitHeads):
    """Predicts the unit of each masked frame. Tensors have the names of fairseq's HubertModel.

    With several label sets, each has its own projection and unit embeddings, like fairseq's
    `untie_final_proj: true`. Unsupported: fairseq's default of one projection for all sets,
    `target_glu`, and `dropout_features`, which changes nothing in its pre-training loss.
    """

    def __init__(self, cfg: MusicHubertConfig, classes_per_set: Sequence[int]):
        """Build the encoder and one head per label set.

        `classes_per_set` are the lengths of their dictionaries, special symbols included.

        Raises InputError if there are neither label sets nor random projections, or `label_layers`
        does not fit them.
        """
        super().__init__(cfg)
        self.random_units = _random_units(cfg, self.grid)
        if self.random_units is not None:
            classes_per_set = [*classes_per_set, *[cfg.projection_size] * cfg.projection_sets]
        if not classes_per_set:
            raise InputError(
                "nothing to predict: task.label_dir is empty and model.projection_targets is none"
            )
        self.make_unit_heads(classes_per_set)
        self.cqt: ConstantQ | None = None
        self.cqt_proj: nn.Linear | None = None
        if cfg.cqt_bands:
            self.cqt = ConstantQ(cfg.cqt_bands, cfg.pitch_taps, self.grid)
            self.cqt_proj = nn.Linear(self.head_width, self.cqt.bands)

    @classmethod
    def build_model(cls, cfg: MusicHubertConfig, task: Any) -> "MusicHubertModel":
        return cls(cfg, task.classes_per_set)

    def _projection(self, channels: int, dim: int) -> nn.Linear | None:
        return nn.Linear(channels, dim) if channels != dim else None

    def forward(
        self,
        source: Tensor,
        target: Tensor,
        mask: Tensor,
        masked_indices: Tensor | None = None,
        unmasked_indices: Tensor | None = None,
        padding_mask: Tensor | None = None,
        score_unmasked: bool = True,
        num_visible: int | None = None,
    ) -> dict[str, Any]:
        """Score every unit at every frame, or at every masked frame.

        Args:
            source: `[B, T]` waveforms.
            target: `[B, frames, sets]` class of each frame in each label set, -1 where there is
                none. Random projections' units are added here.
            mask: `[views, frames]` bool, True for masked frames: one or several masks per crop,
                a crop's masks in succession.
            masked_indices: `[N]` ascending indices into `views * frames` of the masked frames that
                have a target. By default found here, which synchronises with the GPU.
            unmasked_indices: `[M]` likewise for unmasked frames.
            padding_mask: `[B, T]` bool, True for padding, or None.
            score_unmasked: False if the unmasked frames' scores are not needed.
            num_visible: see `contextualise`.

        Returns:
            `logits_m`: a list with `[N, classes]` per label set. `target_m`: `[N, sets]`.
            `logits_u`, `target_u`: likewise for unmasked frames; None without `score_unmasked` or
            with `skip_nomask`. `features_pen`: mean square of the extractor's features.
            `cqt_error`, with `cqt_bands`: squared error of the masked frames' constant-Q
            transforms, a mean over bands and a sum over frames.
        """
        execution = self.execution.for_batch(source, padding_mask, self.training)
        score_unmasked = score_unmasked and not self.cfg.skip_nomask
        if self.random_units is not None:
            target = torch.cat([target, self.random_units(source)], dim=-1)
        target = repeat_crops(target, len(mask))
        if masked_indices is None:
            masked_indices = _indices(mask & _has_units(target))
        if unmasked_indices is None and score_unmasked:
            unmasked_indices = _indices(~mask & _has_units(target))
        scored = None if score_unmasked else masked_indices
        with self.autocast(source.device):
            inputs = self.extract(source, execution)
            padding = self.frame_padding(padding_mask, inputs[0].size(1))
            padding = None if padding is None else repeat_crops(padding, len(mask))
            x, output = execution.encoder_input(self, inputs, mask)
            x, layer_outputs = self.contextualise(x, mask, padding, execution, scored, num_visible)
        target = target.flatten(0, 1)
        scored_frames = {"m": masked_indices, "u": unmasked_indices if score_unmasked else None}
        for name, indices in scored_frames.items():
            output[f"logits_{name}"] = output[f"target_{name}"] = None
            if indices is not None:
                frames = self.prediction_frames(x, layer_outputs, indices)
                output[f"logits_{name}"] = self.logits(frames, execution)
                output[f"target_{name}"] = target[indices]
        if self.cqt is not None:
            chosen = frames_at(x, masked_indices)
            output["cqt_error"] = self._cqt_error(chosen, source, len(mask), masked_indices)
        return output

    def _cqt_error(self, x: Tensor, source: Tensor, views: int, masked_indices: Tensor) -> Tensor:
        """Return the error of predictions from the masked frames `x`, `[N, D]`: see `forward`."""
        assert self.cqt is not None
        assert self.cqt_proj is not None
        with self.autocast(source.device):
            levels = repeat_crops(self.cqt(source), views).flatten(0, 1)[masked_indices]
            error = (self.cqt_proj(x).float() - levels).square()
        return error.mean(-1).sum()

    def encoder_input(
        self, inputs: list[Tensor], mask: Tensor, drop: Drop = drop
    ) -> tuple[Tensor, dict[str, Any]]:
        """Map the output of `extract` to masked views, and to fairseq's `features_pen`."""
        x = self.mask_views(self.project(inputs), mask, drop)
        return x, {"features_pen": inputs[0].float().square().mean()}


def _random_units(cfg: MusicHubertConfig, grid: FrameGrid) -> RandomProjection | None:
    kind = str(cfg.projection_targets)
    if kind == "none":
        return None
    features = (
        MelBands(_MEL_BANDS, grid)
        if kind == "logmel"
        else ConstantQ(_SEMITONES, cfg.pitch_taps, grid)
    )
    return RandomProjection(features, cfg.projection_sets, cfg.projection_size)


def _indices(mask: Tensor) -> Tensor:
    return mask.flatten().nonzero().squeeze(1)


def _has_units(target: Tensor) -> Tensor:
    return (target >= 0).all(-1)
