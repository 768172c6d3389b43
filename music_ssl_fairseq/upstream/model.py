"""Use a frozen pre-trained encoder as it was trained."""

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from music_ssl_fairseq import audio
from music_ssl_fairseq.errors import InputError
from music_ssl_fairseq.frames import FrameGrid
from music_ssl_fairseq.upstream.build import build_encoder
from music_ssl_fairseq.upstream.contents import Contents, check_sample_rate
from music_ssl_fairseq.upstream.statistics import Statistics, measure
from music_ssl_fairseq.upstream.windows import Windowing, add_share, sections


class Upstream:
    """A frozen encoder.

    Layer 0 is the extractor's projected output, before positions are added; layer n is the output
    of the n-th Transformer layer.

    Attributes:
        model: the encoder, in evaluation mode, without gradients.
        family: its kind: music_hubert, music2vec, hubert, data2vec_audio or wav2vec2.
        path: the file or folder.
        name: stem of the file, for reports.
        config: the fields of `contents.ARCHITECTURE`.
        normalise: whether waveforms get zero mean and unit variance first.
        sample_rate: Hz, of the waveforms that `layers` takes.
        grid: the samples that each frame covers.
        frame_rate: frames per second.
        num_layers: Transformer layers; layer 0 comes on top.
        dimension: values per frame.
    """

    def __init__(
        self, contents: Contents, device: str | torch.device = "cpu", precision: str = "auto"
    ):
        """Build the encoder and move it to `device`; `precision` as of `upstream.load`.

        Raises:
            InputError: if tensors are missing, left over or of another shape, or the model is of
                another sample rate.
        """
        check_sample_rate(contents)
        self.family = contents.family
        self.path = contents.origin
        self.name = Path(contents.origin).stem
        self.config = dict(contents.config)
        self.normalise = contents.normalise
        self.sample_rate = contents.sample_rate
        self.model = build_encoder(contents, precision).eval().requires_grad_(False).to(device)
        self.grid: FrameGrid = self.model.grid
        self.frame_rate = self.sample_rate / self.grid.hop
        self.num_layers = int(self.config["encoder_layers"])
        self.dimension = int(self.config["encoder_embed_dim"])

    @property
    def device(self) -> torch.device:
        """The encoder's device."""
        return self.model.mask_emb.device

    @property
    def precision(self) -> str:
        """The arithmetic: "fp32" or "bf16"."""
        with self.model.autocast(self.device):
            return "bf16" if torch.is_autocast_enabled(self.device.type) else "fp32"

    @cached_property
    def fingerprint(self) -> str:
        """Hex SHA-256 of the settings and tensors that decide the features."""
        settings = {"normalise": self.normalise, "sample_rate": self.sample_rate, **self.config}
        digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
        for name, tensor in sorted(self.model.state_dict().items()):
            if name != "mask_emb":
                digest.update(f"{name} {tuple(tensor.shape)}".encode())
                digest.update(tensor.float().cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()

    @torch.no_grad()
    def layers(self, waveform: Tensor, padding_mask: Tensor | None = None) -> list[Tensor]:
        """Return every layer's hidden states.

        Args:
            waveform: `[B, T]` float at `sample_rate`, as read; normalised here if the model was
                trained so.
            padding_mask: `[B, T]` bool, True for the padding after a waveform's end, or None. Each
                waveform has the features that it has alone, followed by zeros. (In fairseq and
                transformers, norms and stacked positional convolutions include the padding.)

        Returns:
            `num_layers + 1` tensors `[B, frames, D]` float32, on the model's device.

        Raises:
            InputError: if there are fewer samples than one frame needs, or padding is elsewhere.
        """
        return [layer.float() for layer in self.hidden_states(waveform, padding_mask)]

    @torch.no_grad()
    def hidden_states(
        self,
        waveform: Tensor,
        padding_mask: Tensor | None = None,
        compile: bool = False,
        statistics: Statistics | None = None,
    ) -> list[Tensor]:
        """Return `layers` in the precision in which they were computed.

        Args:
            compile: run compiled kernels.
            statistics: of the longer waveforms that these are part of, from `statistics`; by
                default of these waveforms.
        """
        if waveform.ndim != 2:
            raise InputError(f"waveform has shape {tuple(waveform.shape)}; expected [B, T]")
        if waveform.size(1) < self.grid.window:
            raise InputError(too_short(waveform.size(1), self.sample_rate, self.grid))
        waveform = waveform.to(self.device, torch.float32)
        if padding_mask is not None:
            return self._without_padding(waveform, padding_mask.to(self.device))
        folded = None
        if statistics is not None:
            waveform, folded = statistics.normalise(waveform), statistics.folded
        elif self.normalise:
            waveform = F.layer_norm(waveform, waveform.shape[-1:])
        return self.model.layers(waveform, None, self.model.execution.using(compile, folded))

    def _without_padding(self, waveform: Tensor, padding_mask: Tensor) -> list[Tensor]:
        """Compute waveforms of equal length together; pad their features with zeros."""
        frames = self.grid.num_frames(waveform.size(1))
        outputs: list[Tensor] = []
        for length, indices in _by_length(waveform, padding_mask):
            if length < self.grid.window:
                raise InputError(too_short(length, self.sample_rate, self.grid))
            found = self.hidden_states(waveform[indices, :length])
            padded = [F.pad(layer, (0, 0, 0, frames - layer.size(1))) for layer in found]
            outputs = outputs or [x.new_zeros(len(waveform), *x.shape[1:]) for x in padded]
            for output, layer in zip(outputs, padded, strict=True):
                output[indices] = layer
        return outputs

    def features(
        self,
        waveform: Tensor | np.ndarray | Sequence[float],
        sample_rate: int,
        layers: Iterable[int] | None = None,
        windowing: Windowing | None = None,
    ) -> Tensor:
        """Compute features of music at any sample rate and of any length.

        Waveforms are resampled and normalised as in training. A waveform longer than a window goes
        through the model in overlapping windows (see `upstream.windows`).

        Args:
            waveform: `[T]` or `[B, T]`, mono, nominally in [-1, 1].
            sample_rate: Hz.
            layers: numbers from 0; all by default. A long track's layers are large: 13 layers of
                768 values take 120 MB per minute.
            windowing: how to cut long tracks.

        Returns:
            `[layers, B, frames, D]` float32 on the CPU.

        Raises:
            InputError: if a layer does not exist, or there is too little audio for one frame.
        """
        chosen = self.check_layers(range(self.num_layers + 1) if layers is None else layers)
        samples = _as_batch(waveform)
        if sample_rate <= 0 or sample_rate != int(sample_rate):
            raise InputError(f"sample_rate {sample_rate}: expected a whole number of Hz")
        resampled = audio.resample(samples, int(sample_rate), self.sample_rate)
        return self._in_windows(torch.from_numpy(resampled), chosen, windowing)

    def _in_windows(
        self, waveform: Tensor, layers: list[int], windowing: Windowing | None
    ) -> Tensor:
        batch, num_samples = waveform.shape
        frames = self.grid.num_frames(num_samples)
        if not frames:
            raise InputError(too_short(num_samples, self.sample_rate, self.grid))
        output = torch.zeros(len(layers), batch, frames, self.dimension)
        for section in sections(num_samples, self.grid, windowing):
            samples = waveform[:, section.start : section.start + section.num_samples]
            samples = samples.to(self.device)
            statistics = self.statistics(samples) if len(section.windows) > 1 else None
            for window in section.windows:
                hidden = self.hidden_states(section.part(samples, window), statistics=statistics)
                for frames, layer in zip(output, layers, strict=True):
                    add_share(frames, 0, window, hidden[layer].float().cpu())
        return output

    def statistics(self, waveform: Tensor) -> Statistics:
        """Measure whole waveforms `[B, T]`, for `hidden_states` of windows of them."""
        waveform = waveform.to(self.device, torch.float32)
        return measure(self.model, waveform, self.normalise)

    def drop_above(self, layer: int) -> None:
        """Remove the layers above this one: `layers` then ends with it."""
        encoder = self.model.encoder
        encoder.layers = encoder.layers[:layer]

    def check_layers(self, layers: Iterable[int]) -> list[int]:
        """Return the layers as a list.

        Raises:
            InputError: if there is none, or the model lacks one.
        """
        chosen = list(layers)
        for layer in chosen:
            if not 0 <= layer <= self.num_layers:
                raise InputError(
                    f"{self.path}: has no layer {layer}, only 0 (the extractor's projected output) "
                    f"to {self.num_layers}"
                )
        if not chosen:
            raise InputError("no layer chosen")
        return chosen


def _as_batch(waveform: Tensor | np.ndarray | Sequence[float]) -> np.ndarray:
    """Return `[B, T]` float32."""
    array = np.asarray(waveform.detach().cpu() if isinstance(waveform, Tensor) else waveform)
    if array.dtype.kind in "iu" and array.size:
        raise InputError(
            f"waveform holds integers ({array.dtype}); expected floats in [-1, 1]: divide them by "
            "full scale, such as 32768"
        )
    if array.ndim not in (1, 2):
        raise InputError(f"waveform has shape {array.shape}; expected [T] or [B, T]")
    return np.atleast_2d(array.astype(np.float32))


def _by_length(waveform: Tensor, padding_mask: Tensor) -> Iterator[tuple[int, Tensor]]:
    """Iterate over the lengths without padding, each with the indices of its waveforms.

    Raises:
        InputError: if the mask does not fit the waveforms, or marks other samples than the last.
    """
    if padding_mask.shape != waveform.shape or padding_mask.dtype != torch.bool:
        raise InputError(
            f"padding_mask is {padding_mask.dtype} {tuple(padding_mask.shape)}; expected bool of "
            f"the waveform's shape {tuple(waveform.shape)}, True for padding"
        )
    lengths = (~padding_mask).sum(-1)
    after = torch.arange(waveform.size(1), device=waveform.device) >= lengths.unsqueeze(-1)
    if not torch.equal(after, padding_mask):
        raise InputError("padding_mask marks samples before a waveform's end: pad on the right")
    for length in lengths.unique().tolist():
        yield length, (lengths == length).nonzero().squeeze(-1)


def too_short(num_samples: int, sample_rate: int, grid: FrameGrid) -> str:
    """Return the reason why so few samples have no features."""
    return (
        f"{num_samples / sample_rate:.3f} s of audio is less than one frame "
        f"({grid.window / sample_rate:.3f} s)"
    )
