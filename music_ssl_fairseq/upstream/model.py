"""Use a frozen pre-trained encoder as it was trained."""

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from operator import index
from typing import Self

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from music_ssl_fairseq.errors import InputError
from music_ssl_fairseq.fast.dispatch import Execution
from music_ssl_fairseq.frames import FrameGrid
from music_ssl_fairseq.runtime.user_command import with_other
from music_ssl_fairseq.upstream.build import build_encoder
from music_ssl_fairseq.upstream.contents import Contents, check_sample_rate
from music_ssl_fairseq.upstream.result import Features
from music_ssl_fairseq.upstream.waveforms import Clip, clips_of, mono, refuse_unreadable
from music_ssl_fairseq.upstream.windows import (
    Statistics,
    Window,
    Windowing,
    add_share,
    measure,
    sections,
)

PRECISIONS = ("auto", "fp32", "bf16")


class Upstream(nn.Module):
    """A pre-trained encoder, frozen until `requires_grad_()` is called.

        model = music_ssl_fairseq.load("runs/music_hubert/short").to("cuda")
        features = model.features("song.mp3", layers=[6, -1])
        vectors = model.embed(["a.mp3", "b.wav"])

    A module like any other: `.to("cuda")`, `parameters()`, `state_dict()`. Calling it returns the
    last layer, with gradients once the encoder is not frozen. The other methods have none.

    Layer 0 is the extractor's projected output, before positions are added; layer n is the output
    of the n-th Transformer layer.

    Attributes:
        model: the encoder, in evaluation mode, without gradients.
        family: its kind: music_hubert, music2vec, hubert, data2vec_audio or wav2vec2.
        path: the file or folder; of a model on the hub, its name with the commit.
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

        Raises InputError if tensors are missing, left over or of another shape, the model is of
        another sample rate, or there is no such precision.
        """
        check_sample_rate(contents)
        if precision not in PRECISIONS:
            raise InputError(f"precision={precision!r}: expected one of {', '.join(PRECISIONS)}")
        super().__init__()
        self.family = contents.family
        self.path = contents.origin
        self.name = contents.name
        self.config = dict(contents.config)
        self.normalise = contents.normalise
        self.sample_rate = contents.sample_rate
        self.model = build_encoder(contents, precision).requires_grad_(False)
        try:
            self.model.to(device)
        except torch.OutOfMemoryError:
            raise
        except (RuntimeError, AssertionError, TypeError) as error:  # AssertionError: no CUDA in it
            raise InputError(f"device={device!r}: {str(error).splitlines()[0]}") from None
        self.eval()
        self._whole = ""  # fingerprint before layers were removed
        self.grid: FrameGrid = self.model.grid
        self.frame_rate = self.grid.rate
        self.num_layers = int(self.config["encoder_layers"])
        self.dimension = int(self.config["encoder_embed_dim"])

    def __repr__(self) -> str:
        count = sum(parameter.numel() for parameter in self.parameters())
        return (
            f"Upstream({self.family}, {self.num_layers} layers of {self.dimension}, "
            f"{self.frame_rate:g} frames/s, {count / 1e6:.1f} M parameters, {self.precision} on "
            f"{self.device}, from {self.path})"
        )

    def requires_grad_(self, requires_grad: bool = True) -> Self:
        """Thaw or freeze the encoder, but the embedding of masks, which pre-training alone uses.

        DistributedDataParallel refuses parameters that get no gradients.
        """
        super().requires_grad_(requires_grad)
        self.model.mask_emb.requires_grad_(False)
        return self

    @property
    def device(self) -> torch.device:
        """The encoder's device."""
        return self.model.mask_emb.device

    @property
    def precision(self) -> str:
        """The arithmetic: "fp32" or "bf16"."""
        return self.model.precision_on(self.device)

    @property
    def fingerprint(self) -> str:
        """Hex SHA-256 of the settings and tensors that decide the features."""
        if self._whole:
            return self._whole
        settings = {"normalise": self.normalise, "sample_rate": self.sample_rate, **self.config}
        digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
        for name, tensor in sorted(self.model.state_dict().items()):
            if name != "mask_emb":
                digest.update(f"{name} {tuple(tensor.shape)}".encode())
                digest.update(tensor.float().cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()

    def forward(self, waveform: Tensor, padding_mask: Tensor | None = None) -> Tensor:
        """Return the last layer, `[B, frames, D]` float32, with gradients.

        It takes the arguments of `layers`, and raises its errors. In training mode dropouts are
        fairseq's: 0.1 in the Transformer.
        """
        _refuse_bad_samples(waveform)
        tensors = (waveform, *self.parameters())
        needed = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)
        trained = self.training or needed
        layers = self.trained_layers if trained else self.raw_layers
        return layers(waveform, padding_mask)[-1].float()

    def trained_layers(self, waveform: Tensor, padding_mask: Tensor | None = None) -> list[Tensor]:
        """Return layers 0 to `num_layers` in the module's mode, with gradients."""

        def encode(waveform: Tensor) -> list[Tensor]:
            if self.normalise:
                waveform = F.layer_norm(waveform, waveform.shape[-1:])
            # As in pre-training: plain on a CPU, whose fast path is for inference.
            return self.model.trained_layers(waveform, None, Execution("auto"))

        return self._encoded(waveform, padding_mask, encode)

    @torch.no_grad()
    def layers(self, waveform: Tensor, padding_mask: Tensor | None = None) -> list[Tensor]:
        """Return layers 0 to `num_layers`, without gradients.

        Raises InputError if there are fewer samples than one frame needs, padding is elsewhere, or
        samples are NaN or infinite.

        Args:
            waveform: `[B, T]` float at `sample_rate`, as read; normalised here if the model was
                trained so.
            padding_mask: `[B, T]` bool, True for the padding after a waveform's end, or None. Each
                waveform has the features that it has alone, followed by zeros. (In fairseq and
                transformers, norms and stacked positional convolutions include the padding.)

        Returns:
            `num_layers + 1` tensors `[B, frames, D]` float32, on the model's device.
        """
        _refuse_bad_samples(waveform)
        return [layer.float() for layer in self.raw_layers(waveform, padding_mask)]

    @torch.no_grad()
    def raw_layers(
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

        def encode(waveform: Tensor) -> list[Tensor]:
            folded = None
            if statistics is not None:
                waveform = (waveform - statistics.mean) * statistics.scale
                folded = statistics.folded
            elif self.normalise:
                waveform = F.layer_norm(waveform, waveform.shape[-1:])
            return self.model.layers(waveform, None, self.model.execution.using(compile, folded))

        return self._encoded(waveform, padding_mask, encode)

    def _encoded(
        self,
        waveform: Tensor,
        padding_mask: Tensor | None,
        encode: Callable[[Tensor], list[Tensor]],
    ) -> list[Tensor]:
        """Check waveforms, encode waveforms of equal length together, pad features with zeros."""
        if waveform.ndim != 2 or not len(waveform):
            raise InputError(
                f"waveform has shape {tuple(waveform.shape)}; expected [B, T], B from 1 on"
            )
        if waveform.size(1) < self.grid.window:
            raise InputError(too_short(waveform.size(1), self.sample_rate, self.grid))
        if self.device.type == "meta":
            raise InputError(f"{self.path}: is on the meta device, which holds no weights")
        if self.model.mask_emb.dtype != torch.float32:
            raise InputError(
                f"weights are {self.model.mask_emb.dtype}: keep them in float32, and load the "
                "model with precision='bf16' for faster arithmetic"
            )
        waveform = waveform.to(self.device, torch.float32)
        if padding_mask is None:
            return encode(waveform)
        if not isinstance(padding_mask, Tensor):
            found = type(padding_mask).__name__
            raise InputError(f"padding_mask is {found}; expected a tensor of bool, [B, T]")
        frames = self.grid.num_frames(waveform.size(1))
        outputs: list[Tensor] = []
        for length, indices in _by_length(waveform, padding_mask.to(self.device)):
            if length < self.grid.window:
                raise InputError(too_short(length, self.sample_rate, self.grid))
            found = encode(waveform[indices, :length])
            padded = [F.pad(layer, (0, 0, 0, frames - layer.size(1))) for layer in found]
            outputs = outputs or [x.new_zeros(len(waveform), *x.shape[1:]) for x in padded]
            for output, layer in zip(outputs, padded, strict=True):
                output[indices] = layer
        return outputs

    def features(
        self,
        audio: Clip | Sequence[Clip],
        sample_rate: int | None = None,
        layers: Iterable[int] | int | None = None,
        windowing: Windowing | None = None,
        channels: str | None = None,
    ) -> Features | list[Features]:
        """Compute features of music at any sample rate and of any length.

        Waveforms are resampled and normalised as in training. A waveform longer than a window goes
        through the model in overlapping windows (see `upstream.windows`).

        Raises InputError if a layer does not exist, a file cannot be read, there is too little
        audio for one frame, or samples are NaN.

        Args:
            audio: a file; `[T]`, NumPy or torch, nominally in [-1, 1]; `[C, T]` or `[T, C]`, whose
                channels are averaged; or several of these, of any lengths, in a list, an iterator,
                an array or Series of names.
            sample_rate: Hz, of waveforms. Files have their own.
            layers: numbers from 0, or from the end: -1 is the last; all by default. A long track's
                layers are large: 13 layers of 768 values take 120 MB per minute.
            windowing: lengths of the overlapping windows of long tracks, by default of 30 s.
            channels: "first" for `[C, T]`, "last" for `[T, C]`; needed for several channels.

        Returns:
            `Features` of the clip; of a list, a list of them.
        """
        chosen = self.check_layers(layers)
        clips, several = clips_of(audio)
        found = [
            self._features(mono(clip, name, sample_rate, channels), name, chosen, windowing)
            for clip, name in clips
        ]
        return found if several else found[0]

    def embed(
        self,
        audio: Clip | Sequence[Clip],
        sample_rate: int | None = None,
        layers: Iterable[int] | int | None = None,
        windowing: Windowing | None = None,
        channels: str | None = None,
    ) -> np.ndarray:
        """Compute one vector per song, for scikit-learn: the mean over time and over `layers`.

        Raises InputError as `features`; files that do not exist or are no audio are named before
        anything is computed.

        Args:
            audio: files or waveforms, as for `features`; one alone counts as a list of one.
            layers: by default all but layer 0, or layer 0 of a model without others.

        Returns:
            `[songs, D]` float32.
        """
        chosen = self.check_layers(
            range(min(1, self.num_layers), self.num_layers + 1) if layers is None else layers
        )
        clips, _ = clips_of(audio)
        refuse_unreadable(clip for clip, _ in clips)
        vectors = np.zeros((len(clips), self.dimension), np.float32)
        for vector, (clip, name) in zip(vectors, clips, strict=True):
            waveform = mono(clip, name, sample_rate, channels)
            total = torch.zeros(self.dimension, dtype=torch.float64, device="cpu")
            for window, hidden in self._windows(waveform, name, windowing):
                weights = torch.from_numpy(window.weights).to(self.device).unsqueeze(-1)
                for layer in chosen:
                    total += (hidden[layer].float() * weights).sum((0, 1)).cpu()
            vector[:] = total / (self.grid.num_frames(len(waveform)) * len(chosen))
        return vectors

    def _features(
        self, waveform: np.ndarray, name: str, layers: list[int], windowing: Windowing | None
    ) -> Features:
        shape = len(layers), self.grid.num_frames(len(waveform)), self.dimension
        output = torch.zeros(shape, dtype=torch.float32, device="cpu")
        for window, hidden in self._windows(waveform, name, windowing):
            for frames, layer in zip(output, layers, strict=True):
                add_share(frames, 0, window, hidden[layer][0].float().cpu())
        starts = torch.arange(output.size(1), dtype=torch.float64, device="cpu") * self.grid.hop
        return Features(output, layers, (starts + self.grid.window / 2) / self.sample_rate)

    def _windows(
        self, waveform: np.ndarray, name: str, windowing: Windowing | None
    ) -> Iterator[tuple[Window, list[Tensor]]]:
        """Yield the windows of `[T]` with their `raw_layers`, `[1, frames, D]`."""
        num_samples = len(waveform)
        if num_samples < self.grid.window:
            raise InputError(f"{name}: {too_short(num_samples, self.sample_rate, self.grid)}")
        for section in sections(num_samples, self.grid, windowing):
            part = waveform[None, section.start : section.start + section.num_samples]
            samples = torch.from_numpy(part).to(self.device)
            statistics = self.statistics(samples) if len(section.windows) > 1 else None
            for window in section.windows:
                hidden = self.raw_layers(section.part(samples, window), statistics=statistics)
                yield window, hidden

    def statistics(self, waveform: Tensor) -> Statistics:
        """Measure whole waveforms `[B, T]`, for `raw_layers` of windows of them."""
        waveform = waveform.to(self.device, torch.float32)
        return measure(self.model, waveform, self.normalise)

    def drop_above(self, layer: int) -> None:
        """Remove the layers above this one, which is then the last; the fingerprint stays."""
        self._whole, self.num_layers = self.fingerprint, layer
        encoder = self.model.encoder
        encoder.layers = encoder.layers[:layer]

    def check_layers(self, layers: Iterable[int] | int | None) -> list[int]:
        """Return the layers as numbers from 0: all for None; -1 is the last.

        Raises InputError if there is none, or the model lacks one.
        """
        count = self.num_layers + 1
        if layers is None:
            return list(range(count))
        try:
            chosen = [index(n) for n in (layers if isinstance(layers, Iterable) else [layers])]
        except TypeError:
            raise InputError(f"layers={layers!r}: expected numbers, such as 6 or [6, -1]") from None
        for layer in chosen:
            if layer not in range(-count, count):
                raise InputError(
                    f"{self.path}: has no layer {layer}, only 0 (the extractor's projected output) "
                    f"to {self.num_layers}",
                    with_other("--layer", self.num_layers),
                )
        if not chosen:
            raise InputError("no layer chosen")
        return [layer % count for layer in chosen]


def _refuse_bad_samples(waveform: Tensor) -> None:
    if not isinstance(waveform, Tensor) or not waveform.is_floating_point():
        found = waveform.dtype if isinstance(waveform, Tensor) else type(waveform).__name__
        raise InputError(
            f"waveform is {found}; expected a tensor of floats in [-1, 1], [B, T]: `features` "
            "takes files and arrays"
        )
    if waveform.is_meta:
        raise InputError("waveform is on the meta device, which holds no samples")
    if not torch.isfinite(waveform).all():
        raise InputError("waveform holds NaN or infinite samples")


def _by_length(waveform: Tensor, padding_mask: Tensor) -> Iterator[tuple[int, Tensor]]:
    """Iterate over the lengths without padding, each with the indices of its waveforms.

    Raises InputError if the mask does not fit the waveforms, or marks other samples than the last.
    """
    if padding_mask.shape != waveform.shape or padding_mask.dtype != torch.bool:
        raise InputError(
            f"padding_mask is {padding_mask.dtype} {tuple(padding_mask.shape)}; expected bool of "
            f"the waveform's shape {tuple(waveform.shape)}, True for padding"
        )
    lengths = (~padding_mask).sum(-1)
    after = torch.arange(waveform.size(1), device=waveform.device) >= lengths.unsqueeze(-1)
    if not torch.equal(after, padding_mask):
        raise InputError(
            "padding_mask marks samples before a waveform's end: pad on the right, and mark "
            "padding with True"
        )
    if not lengths.all():
        raise InputError("padding_mask marks all of a waveform: True is for padding")
    for length in lengths.unique().tolist():
        yield length, (lengths == length).nonzero().squeeze(-1)


def too_short(num_samples: int, sample_rate: int, grid: FrameGrid) -> str:
    """Return the reason why so few samples have no features."""
    return (
        f"{num_samples / sample_rate:.3f} s of audio is less than one frame "
        f"({grid.window / sample_rate:.3f} s)"
    )
