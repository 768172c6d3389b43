"""Heads that predict units of one or several label sets: all of musicHuBERT, beside music2vec."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, List, Optional

import torch
from fairseq.dataclass import ChoiceEnum
from torch import Tensor, nn
from torch.nn import functional as F

from music_ssl_fairseq.errors import InputError
from music_ssl_fairseq.fast.dispatch import Execution
from music_ssl_fairseq.modules.audio_encoder import AudioEncoder
from music_ssl_fairseq.modules.cosine_logits import CosineLogits
from music_ssl_fairseq.modules.encoder_config import AudioEncoderConfig
from music_ssl_fairseq.runtime.settings import ABOVE_0, FROM_1, setting


@dataclass
class UnitHeadsConfig(AudioEncoderConfig):
    final_dim: int = setting(256, "dimension in which frames and units are compared", FROM_1)
    logit_temp: float = setting(0.1, "temperature: cosine similarities are divided by it", ABOVE_0)
    unit_init: ChoiceEnum(["uniform", "normal"]) = setting(  # type: ignore[valid-type]
        "uniform",
        "how unit embeddings are drawn. uniform, fairseq's: all in [0, 1), so that any two units "
        "begin with a cosine similarity of 0.75; normal: nearly orthogonal, which learns faster "
        "at the start",
    )
    label_layers: Optional[List[int]] = setting(
        None,
        "the Transformer layer, from 1, whose output predicts each label set, in the order of "
        "task.label_dir and then projections; by default the last for all. Not in fairseq",
    )


class EncoderWithUnitHeads(AudioEncoder):
    """An encoder with a head per label set: a projection and unit embeddings."""

    projection_name = "final_proj"
    """Attribute with the projections of all sets, one after the other."""

    classes_per_set: list[int]  # per label set: units, and symbols of the dictionary
    # The embeddings of all sets, one after the other, `[sum(classes_per_set), final_dim]`; none
    # without label sets
    label_embs_concat: nn.Parameter

    def make_unit_heads(self, classes_per_set: Sequence[int]) -> None:
        """Make the projections and the unit embeddings.

        Raises InputError if `label_layers` does not fit the label sets.

        Args:
            classes_per_set: lengths of the label sets' dictionaries, special symbols included.
        """
        cfg = self.cfg
        self.classes_per_set = list(classes_per_set)
        self._check_label_layers()
        if not self.classes_per_set:
            return
        width = cfg.final_dim * len(self.classes_per_set)
        self.add_module(self.projection_name, nn.Linear(self.head_width, width))
        embeddings = torch.empty(sum(self.classes_per_set), cfg.final_dim)
        draw = nn.init.normal_ if str(cfg.unit_init) == "normal" else nn.init.uniform_
        self.label_embs_concat = nn.Parameter(draw(embeddings))
        self.cosine_logits = CosineLogits(cfg.logit_temp)

    def _check_label_layers(self) -> None:
        layers, number = self.cfg.label_layers, self.cfg.encoder_layers
        if layers is None:
            return
        if self.decoder is not None:
            raise InputError(
                f"model.label_layers={list(layers)} does not go with model.encode=visible, whose "
                "decoder reads the last layer: take model.label_layers=null or model.encode=all"
            )
        if len(layers) != len(self.classes_per_set) or not all(1 <= n <= number for n in layers):
            raise InputError(
                f"model.label_layers is {list(layers)}: give a layer from 1 to {number} for each "
                f"of the {len(self.classes_per_set)} label sets"
            )

    def prediction_frames(
        self, x: Tensor, layer_outputs: list[Tensor], indices: Any
    ) -> list[Tensor]:
        """Return the frames `[N, D]` that predict units: one tensor for all sets, or one per set.

        Args:
            x: the output of `contextualise`, `[views, frames, D]`, or `[N, D]` of these frames.
            layer_outputs: each layer's output, of which `label_layers` chooses.
            indices: `[N]` ascending indices into `views * frames`.
        """
        layers = self.cfg.label_layers or [0]
        last = self.cfg.encoder_layers
        states = [x if layer in (0, last) else layer_outputs[layer - 1] for layer in layers]
        return [frames_at(state, indices) for state in states]

    def logits(self, frames: list[Tensor], execution: Execution | None = None) -> list[Tensor]:
        """Map `prediction_frames` to each set's scores `[N, classes]`, float32."""
        projection: nn.Linear = getattr(self, self.projection_name)
        heads = projection, self.label_embs_concat, self.classes_per_set, self.cosine_logits
        with self.autocast(frames[0].device):
            return (execution or self.execution).run(_score, frames, *heads)


def _score(
    frames: list[Tensor], project: nn.Linear, units: Tensor, classes: list[int], score: CosineLogits
) -> list[Tensor]:
    # No configuration is read here, because OmegaConf cannot be compiled.
    dim = project.out_features // len(classes)
    if len(frames) == 1:
        projected = project(frames[0]).split(dim, dim=-1)
    else:
        parameters = zip(frames, project.weight.split(dim), project.bias.split(dim), strict=True)
        projected = tuple(F.linear(*of_set) for of_set in parameters)
    return [score(*pair) for pair in zip(projected, units.split(classes), strict=True)]


def frames_at(x: Tensor, indices: Tensor) -> Tensor:
    """Return the frames `[N, D]` at indices of `[views, frames, D]`; `[N, D]` unchanged."""
    return x if x.dim() == 2 else x.flatten(0, 1)[indices]
