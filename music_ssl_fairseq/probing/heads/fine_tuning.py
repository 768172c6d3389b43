"""A probe whose encoder is trained along: one head, and the layers that `model.unfreeze` names."""

import re

import torch
from torch import Tensor, nn

from music_ssl_fairseq.errors import InputError
from music_ssl_fairseq.probing.config import HeadGridConfig
from music_ssl_fairseq.probing.features.windows import FRAME_RATE
from music_ssl_fairseq.probing.heads.adam import SHARE
from music_ssl_fairseq.probing.heads.head_grid import HeadGrid, HeadInputs
from music_ssl_fairseq.probing.heads.probe_heads import MIXED
from music_ssl_fairseq.upstream.model import Upstream

_LAYER = re.compile(r"model\.encoder\.layers\.(\d+)\.")
_BEST = "best_"  # of the names of buffers


class FineTunedProbe(HeadGrid):
    """One head on an encoder of which some layers are in training.

    Both have their best state so far: the head in `chosen_*`, the encoder's trained tensors in
    `best_*`.
    """

    def __init__(self, cfg: HeadGridConfig, inputs: HeadInputs, encoder: Upstream, frames: bool):
        """Unfreeze the layers, and note their learning rates for the optimizer.

        With `frames`, a window has one vector per frame, 50 per second.

        Raises InputError if the settings are not those of one head, or unfreeze nothing below it.
        """
        super().__init__(cfg, inputs)
        if len(self.grid) != 1:
            raise InputError(
                f"model.unfreeze={cfg.unfreeze} trains one head, not {len(self.grid)}: give one "
                "layer (model.layers=all) and one rate (model.learning_rates=[0.001])"
            )
        if frames and encoder.frame_rate != FRAME_RATE:
            raise InputError(
                f"model.unfreeze: labels per frame need an encoder of {FRAME_RATE} frames per "
                f"second, and {encoder.path} has {encoder.frame_rate:g}"
            )
        (head,) = self.grid
        self._frames = frames
        self._frozen_updates = cfg.frozen_updates
        self.encoder = encoder  # tensors that are not trained have no gradient
        encoder.model.cfg.precision = cfg.precision
        lowest = _lowest_layer(cfg.unfreeze, encoder.num_layers)
        top = encoder.num_layers if head.layer == MIXED else int(head.layer)
        if lowest > top:
            raise InputError(
                f"model.unfreeze={cfg.unfreeze} trains layers from {lowest} on, and the head is on "
                f"layer {top}, which does not depend on them"
            )
        for name, parameter in encoder.named_parameters():
            found = _LAYER.match(name)
            layer = int(found[1]) + 1 if found else 0
            parameter.requires_grad_(lowest <= layer <= top and not name.endswith("mask_emb"))
            rate = cfg.encoder_learning_rate * cfg.layer_decay ** (top - layer)
            setattr(parameter, SHARE, rate / head.learning_rate)
        for name, tensor in self._trained():
            self.register_buffer(_BEST + name, tensor.detach().clone())

    def _trained(self) -> list[tuple[str, nn.Parameter]]:
        """Return the tensors in training, under names that buffers may have."""
        return [
            (name.replace(".", "-"), parameter)
            for name, parameter in self.encoder.named_parameters()
            if parameter.requires_grad
        ]

    def forward(self, waveform: Tensor, lengths: Tensor, counts: list[int]) -> Tensor:  # type: ignore[override]
        """Encode windows, and map their vectors to logits `[heads, N, outputs]`.

        Args:
            waveform: `[B, T]`, padded on the right.
            lengths: `[B]`, samples of each window.
            counts: vectors of each window; N in all.
        """
        if self.scoring:
            self._hold_chosen()
        equal = bool((lengths == waveform.size(1)).all())
        padding = None
        if not equal:
            places = torch.arange(waveform.size(1), device=waveform.device)
            padding = places >= lengths.to(waveform.device).unsqueeze(1)
        if self.training and self._updates >= self._frozen_updates:
            layers = self.encoder.trained_layers(waveform, padding)
        else:
            layers = self.encoder.raw_layers(waveform, padding)
        hidden = torch.stack([layer.float() for layer in layers], 2)  # [B, frames, layers, D]
        return super().forward(self._vectors(hidden, lengths.tolist(), counts))

    def _vectors(self, hidden: Tensor, lengths: list[int], counts: list[int]) -> Tensor:
        """Return the means of the windows, or their frames: `[N, layers, D]`."""
        if not self._frames:
            frames = [self.encoder.grid.num_frames(length) for length in lengths]
            real = torch.tensor(frames, device=hidden.device).view(-1, 1, 1)
            return hidden.sum(1) / real
        found = []
        for window, length, count in zip(hidden, lengths, counts, strict=True):
            window = window[: self.encoder.grid.num_frames(length)][:count]
            missing = count - len(window)
            found.append(torch.cat([window, window[-1:].expand(missing, -1, -1)]))
        return torch.cat(found)

    @torch.no_grad()
    def take_scores(self, scores: Tensor, epoch: int, last: bool = False) -> None:
        """Judge a validation, and keep the encoder's state with that of the head."""
        before = self.best_score()
        super().take_scores(scores, epoch, last)
        if self.best_score() > before:
            for name, tensor in self._trained():
                getattr(self, _BEST + name).copy_(tensor)

    def _hold_chosen(self) -> None:
        if not self._holds_chosen:
            with torch.no_grad():
                for name, tensor in self._trained():
                    tensor.copy_(getattr(self, _BEST + name))
        super()._hold_chosen()


def check_settings(cfg: HeadGridConfig) -> bool:
    """Tell whether the encoder is trained along.

    Raises InputError if a setting is of no use because nothing is unfrozen.
    """
    default = HeadGridConfig()
    if cfg.unfreeze != "none":
        return True
    for name in ("encoder_learning_rate", "layer_decay", "frozen_updates", "precision"):
        if str(getattr(cfg, name)) != str(getattr(default, name)):
            raise InputError(
                f"model.{name} goes with model.unfreeze=all or top-N; the encoder is frozen"
            )
    return False


def _lowest_layer(unfreeze: str, num_layers: int) -> int:
    """Return the lowest layer in training; 0 stands for all that is below the first."""
    if unfreeze == "all":
        return 0
    number = unfreeze.removeprefix("top-")
    if number == unfreeze or not number.isdecimal() or not 1 <= int(number) <= num_layers:
        raise InputError(
            f"model.unfreeze={unfreeze}: expected none, all, or top-1 to top-{num_layers}"
        )
    return num_layers - int(number) + 1
