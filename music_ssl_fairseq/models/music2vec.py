"""music2vec: data2vec 1.0 on music (Baevski et al. 2022; Ma et al., arXiv 2307.05161)."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, List, Optional

import torch
from fairseq.dataclass import ChoiceEnum
from fairseq.models import register_model
from torch import Tensor, nn

from music_ssl_fairseq.errors import InputError
from music_ssl_fairseq.fast.dispatch import Execution
from music_ssl_fairseq.models.unit_prediction import EncoderWithUnitHeads, UnitHeadsConfig
from music_ssl_fairseq.modules.dropout import Drop, drop
from music_ssl_fairseq.modules.ema_teacher import EMATeacher, annealed_decay
from music_ssl_fairseq.modules.views import indices_in_crops, repeat_crops
from music_ssl_fairseq.runtime.settings import BELOW_1, FROM_0, FROM_1, UP_TO_1, setting

logger = logging.getLogger(__name__)


@dataclass
class Music2VecConfig(UnitHeadsConfig):
    extractor_mode: str = setting(
        "layer_norm", "default or layer_norm; data2vec's base model has layer_norm"
    )
    conv_pos: int = setting(95, "frames seen by all positional convolutions", FROM_1)
    pos_conv_depth: int = setting(5, "stacked positional convolutions", FROM_1)
    encoder_layerdrop: float = setting(
        0.05, "probability of leaving out a Transformer layer", BELOW_1
    )
    average_top_k_layers: int = setting(
        8, "the teacher's last layers whose mean is the target (paper: 8 and 12)", FROM_1
    )
    target_layers: Optional[List[int]] = setting(
        None,
        "the teacher's layers whose mean is the target, counted from 1, in place of the last "
        "ones: [1, 2, 3, 4] for early layers. Not in fairseq",
    )
    top_k_start: Optional[int] = setting(
        None,
        "a curriculum: targets begin as the mean of so many last layers, and reach "
        "average_top_k_layers after top_k_updates. Not in fairseq",
    )
    top_k_updates: int = setting(0, "updates over which top_k_start grows, in equal steps", FROM_0)
    target_norm: ChoiceEnum(["instance", "batch", "layer"]) = setting(  # type: ignore[valid-type]
        "instance",
        "what each target layer is normalised over, fairseq's *_norm_target_layer. instance, "
        "data2vec's: the frames of a crop, per channel. It takes out what is constant in a crop, "
        "such as the timbre. batch: the frames of all crops, per channel. layer: the channels of "
        "each frame",
    )
    ema_decay: float = setting(0.999, "decay of the teacher at the start", UP_TO_1)
    ema_end_decay: float = setting(0.9999, "decay of the teacher after annealing", UP_TO_1)
    ema_anneal_end_step: int = setting(
        30000, "updates over which the decay grows; fairseq's default is max_update", FROM_0
    )
    ema_layers_only: bool = setting(
        True,
        "the teacher shares the student's positional convolution, extractor and projection, "
        "whatever ema_transformer_only says (as in fairseq)",
    )
    ema_transformer_only: bool = setting(
        True,
        "the teacher shares the student's extractor and projection. false, together with "
        "ema_layers_only=false: it has its own, so that the student cannot make the task easy by "
        "taking the music out of them",
    )


@register_model("music2vec", dataclass=Music2VecConfig)
class Music2VecModel(EncoderWithUnitHeads):
    """Predicts, at masked frames, the representation by a slowly moving copy of the whole crop.

    Tensors have the names of fairseq's Data2VecAudioModel, the teacher's under `_ema`. With label
    sets (not in fairseq) it predicts their units as well, with heads as musicHuBERT's.
    """

    projection_name = "unit_proj"

    def __init__(self, cfg: Music2VecConfig, classes_per_set: Sequence[int] = ()):
        """Build the encoder, and one head per label set.

        `classes_per_set` are the lengths of their dictionaries, special symbols included.

        Raises InputError if settings do not fit together.
        """
        super().__init__(cfg)
        check_targets(cfg)
        self.final_proj = nn.Linear(self.head_width, cfg.encoder_embed_dim)
        self.make_unit_heads(classes_per_set)
        self.teacher: EMATeacher | None = None
        # As in fairseq: ema_layers_only implies ema_transformer_only.
        self._whole_teacher = not (cfg.ema_transformer_only or cfg.ema_layers_only)
        if cfg.ema_layers_only and not cfg.ema_transformer_only:
            logger.warning(
                "model.ema_transformer_only=false changes nothing while model.ema_layers_only is "
                "true: set both to false for a teacher with an extractor of its own"
            )
        self.teacher_decay = cfg.ema_decay
        self.num_updates = 0
        self._teacher_update = 0

    @classmethod
    def build_model(cls, cfg: Music2VecConfig, task: Any = None) -> "Music2VecModel":
        return cls(cfg, task.classes_per_set if task is not None else ())

    def set_num_updates(self, num_updates: int) -> None:
        """Move the teacher, once per update.

        fairseq calls this before every forward pass. With `update_freq` n its own data2vec moves
        the teacher n times per update, so that its average covers n times fewer updates.
        """
        super().set_num_updates(num_updates)
        self.num_updates = num_updates
        if self.teacher is None:
            self.make_teacher()
        elif self.training and num_updates != self._teacher_update and num_updates > 0:
            cfg = self.cfg
            self.teacher_decay = annealed_decay(
                cfg.ema_decay, cfg.ema_end_decay, num_updates, cfg.ema_anneal_end_step
            )
            self.teacher.step(self._averaged_part(), self.teacher_decay)
            self._teacher_update = num_updates

    def make_teacher(self) -> EMATeacher:
        """Make the teacher, a copy of the student."""
        self.teacher = EMATeacher(
            self._averaged_part(), "pos_conv." if self.cfg.ema_layers_only else ""
        )
        return self.teacher

    def _averaged_part(self) -> nn.Module:
        """Return the part of the student that the teacher follows."""
        return self if self._whole_teacher else self.encoder

    def forward(
        self,
        source: Tensor,
        mask: Tensor,
        masked_indices: Tensor | None = None,
        padding_mask: Tensor | None = None,
        num_visible: int | None = None,
        units: Tensor | None = None,
    ) -> dict[str, Any]:
        """Predict the teacher's representation of the masked frames, and their units.

        Args:
            source: `[B, T]` waveforms.
            mask: `[views, frames]` bool, True for masked frames (never for padding): one or several
                masks per crop, a crop's masks in succession.
            masked_indices: `[N]` ascending indices into `views * frames` of the masked frames. By
                default found here, which synchronises with the GPU.
            padding_mask: `[B, T]` bool, True for padding, or None.
            num_visible: see `contextualise`.
            units: `[B, frames, sets]` class of each frame in each label set, if there are any.

        Returns:
            `prediction` and `teacher_target`, both `[N, D]` float32, the latter without gradient.
            `teacher_frames`: `[B, frames, D]`, the targets of all frames, and `crop_indices`: `[N]`
            indices into `B * frames` of the masked ones. With label sets, `logits_m`: a list with
            `[N, classes]` per set; and `target_m`: `[N, sets]`.
        """
        execution = self.execution.for_batch(source, padding_mask, self.training)
        if masked_indices is None:
            masked_indices = mask.flatten().nonzero().squeeze(1)
        with self.autocast(source.device):
            inputs = self.extract(source, execution)
            padding = self.frame_padding(padding_mask, inputs[0].size(1))
            x, extra = execution.encoder_input(self, inputs, mask)
            views = None if padding is None else repeat_crops(padding, len(mask))
            x, layer_outputs = self.contextualise(
                x, mask, views, execution, masked_indices, num_visible
            )
            prediction = self.final_proj(x)
            teacher_frames = self.targets(source, extra["projected"].detach(), padding, execution)
        crop_indices = indices_in_crops(masked_indices, mask, len(source))
        output = {
            "prediction": prediction.float(),
            "teacher_target": teacher_frames.flatten(0, 1)[crop_indices],
            "teacher_frames": teacher_frames,
            "crop_indices": crop_indices,
        }
        if units is not None:
            chosen = self.prediction_frames(x, layer_outputs, masked_indices)
            output["logits_m"] = self.logits(chosen, execution)
            output["target_m"] = units.flatten(0, 1)[crop_indices]
        return output

    @torch.no_grad()
    def targets(
        self,
        source: Tensor,
        projected: Tensor,
        padding: Tensor | None,
        execution: Execution | None = None,
    ) -> Tensor:
        """Average feed-forward outputs of the teacher's `target_layers`, each normalised.

        By default each channel of each crop has mean 0 and variance 1 over time (data2vec,
        section 3.3).

        Args:
            source: `[B, T]` waveforms, for a teacher with an extractor of its own.
            projected: `[B, frames, D]`, the student's projected features.
            padding: `[B, frames]` bool, True for padding, or None.
            execution: how operations run; by default as the model's settings say.

        Returns:
            `[B, frames, D]` float32.
        """
        execution = execution or self.execution
        teacher: Any = (self.teacher or self.make_teacher()).model
        layers = target_layers(self.cfg, self.num_updates)
        is_whole = self._whole_teacher  # with an extractor: then it takes waveforms
        inputs, encoder = (source, teacher.encoder) if is_whole else (projected, teacher)

        def teach(inputs: Tensor) -> Tensor:
            if is_whole:
                inputs = teacher.project(teacher.extract(inputs, execution))
            _, _, feed_forwards = encoder(inputs, padding, execution)
            outputs = [feed_forwards[layer - 1] for layer in layers]
            return execution.run(_normalised_mean, outputs, _NORM_AXES[str(self.cfg.target_norm)])

        if padding is not None or not self.training:
            return teach(inputs)
        return execution.replay(teacher, teach, inputs, layers)

    def encoder_input(
        self, inputs: list[Tensor], mask: Tensor, drop: Drop = drop
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Map the output of `extract` to masked views, and to `projected` crops without masks."""
        projected = self.project(inputs)
        return self.mask_views(projected, mask, drop), {"projected": projected}

    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Return the tensors of fairseq's Data2VecAudioModel, the teacher's as a dict in `_ema`."""
        state = super().state_dict(*args, **kwargs)
        if self.teacher is not None:
            prefix = kwargs.get("prefix", args[1] if len(args) > 1 else "")
            state[f"{prefix}_ema"] = dict(self.teacher.model.state_dict())
        return state

    def _load_from_state_dict(self, state_dict, prefix, *args: Any) -> None:
        # Without `_ema` (a model stored for fine-tuning), set_num_updates copies the student.
        teacher_state = state_dict.pop(f"{prefix}_ema", None)
        super()._load_from_state_dict(state_dict, prefix, *args)
        self.teacher = None
        if teacher_state is not None:
            self.make_teacher().model.load_state_dict(teacher_state)

    def _apply(self, fn, *args: Any, **kwargs: Any):
        # For .cuda() and .to(), because the teacher is no submodule. It stays fp32 under .half(),
        # as in fairseq.
        if self.teacher is not None:
            self.teacher.model._apply(lambda t: fn(t).to(t.dtype))
        return super()._apply(fn, *args, **kwargs)


def check_targets(cfg: Music2VecConfig) -> None:
    """Check which layers are targets.

    Raises InputError if there are no such layers, or two settings contradict each other.
    """
    layers, top_k, start = cfg.encoder_layers, cfg.average_top_k_layers, cfg.top_k_start
    if not 1 <= top_k <= layers:
        raise InputError(f"average_top_k_layers {top_k}: the encoder has {layers} layers")
    chosen = cfg.target_layers
    if chosen is not None and (
        not chosen or len(set(chosen)) < len(chosen) or not all(1 <= n <= layers for n in chosen)
    ):
        raise InputError(
            f"model.target_layers is {list(chosen)}: give different layers from 1 to {layers}"
        )
    if start is not None and chosen is not None:
        raise InputError("model.top_k_start does not go with model.target_layers: set one of them")
    if start is not None and not (1 <= start <= top_k and cfg.top_k_updates > 0):
        raise InputError(
            f"model.top_k_start={start}, model.top_k_updates={cfg.top_k_updates}: the first must "
            f"be 1 to average_top_k_layers ({top_k}), the second above 0"
        )


def target_layers(cfg: Music2VecConfig, update: int) -> list[int]:
    """Return the teacher's layers, from 1, whose mean is the target at this update."""
    if cfg.target_layers is not None:
        return list(cfg.target_layers)
    count = cfg.average_top_k_layers
    if cfg.top_k_start is not None:
        steps = count - cfg.top_k_start + 1
        count = cfg.top_k_start + min(update * steps // cfg.top_k_updates, steps - 1)
    return list(range(cfg.encoder_layers - count + 1, cfg.encoder_layers + 1))


_NORM_AXES: dict[str, tuple[int, ...]] = {"instance": (1,), "batch": (0, 1), "layer": (2,)}


def _normalised_mean(layers: list[Tensor], axes: tuple[int, ...]) -> Tensor:
    total: Tensor | float = 0.0
    for y in layers:
        variance, mean = torch.var_mean(y.float(), dim=axes, keepdim=True, correction=0)
        total = total + (y.float() - mean) * torch.rsqrt(variance + 1e-5)
    assert isinstance(total, Tensor)
    return total / len(layers)
