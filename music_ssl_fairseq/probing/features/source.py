"""Open the source of the probed features: an encoder, trained or random, or a front end."""

import hashlib
import os
from collections.abc import Iterable, Sequence
from difflib import get_close_matches

import numpy as np
import torch
from torch import Tensor

from music_ssl_fairseq import features, upstream
from music_ssl_fairseq.errors import InputError
from music_ssl_fairseq.probing.features.windows import to_frame_rate
from music_ssl_fairseq.runtime.user_command import with_path

RANDOM = "random:"
"""Prefix of a checkpoint's name: its architecture with random weights."""

_LARGEST_HALF = torch.finfo(torch.float16).max


def open_source(name: str, device: str | torch.device = "cpu", seed: int = 0) -> "FeatureSource":
    """Open the upstream that `model.upstream` names.

    Raises InputError if it is something else, or takes another sample rate.

    Args:
        name: a checkpoint (anything that `upstream.load` opens), `random:` and a checkpoint, or a
            front end (`mfcc`, `chroma`, ...).
        seed: seed of random weights.
    """
    if _is_front_end(name):
        return FrontEndSource(name)
    if name.startswith(RANDOM):
        encoder = upstream.random(name.removeprefix(RANDOM), seed, device)
        return EncoderSource(encoder, f"{encoder.name} (seed {seed})", name)
    encoder = upstream.load(name, device)
    return EncoderSource(encoder, encoder.name, encoder.path)


def require_sources(names: Iterable[str]) -> None:
    """Read each of several upstreams, so that an error in one comes before the first is probed.

    Raises InputError as `open_source`.
    """
    for name in names:
        if not _is_front_end(name):
            upstream.read(name.removeprefix(RANDOM))


def _is_front_end(name: str) -> bool:
    if all(part in features.FRONT_ENDS for part in name.split("+")):
        return True
    near = [get_close_matches(part, features.FRONT_ENDS, 1) for part in name.split("+")]
    if all(near) and os.sep not in name and not os.path.exists(name):
        right = with_path(name, "+".join(part[0] for part in near))
        raise InputError(f"{name}: neither a checkpoint nor a front end", right)
    return False


class EncoderSource:
    """All layers of a frozen encoder; a window's vector is its mean over time."""

    # Whether values differ in scale: then heads get zero mean and unit variance over the training
    # split
    standardise = False

    def __init__(self, encoder: "upstream.Upstream", name: str, path: str):
        self.encoder = encoder
        self.name = name  # for tables
        self.path = path  # the file, for records; of a model on the hub, its name with the commit
        self.fingerprint = encoder.fingerprint  # of what decides the features, hex
        self.precision = encoder.precision  # the encoder's arithmetic, "fp32" or "bf16"
        # Names, in order. A weighted sum leaves out the first
        self.layer_names = tuple(str(i) for i in range(encoder.num_layers + 1))
        # Values per layer of a window, and of a frame
        self.dimension = self.frame_dimension = encoder.dimension
        self.grid = encoder.grid  # samples that each frame covers

    def clip_features(self, waveforms: np.ndarray) -> np.ndarray:
        """Encode `[B, T]` float32 at 16 kHz to `[B, layers, dimension]` float32."""
        layers = self.encoder.layers(torch.from_numpy(waveforms))
        return torch.stack([layer.mean(1) for layer in layers], 1).cpu().numpy()

    def frame_features(self, waveforms: np.ndarray, num_frames: int) -> np.ndarray:
        """Encode `[B, T]` to `[B, num_frames, layers, frame_dimension]` float16, 50 per second."""
        layers = torch.stack(self.encoder.layers(torch.from_numpy(waveforms)), 2)
        return _halves(to_frame_rate(layers.transpose(0, 1), self.grid, num_frames).transpose(0, 1))


class FrontEndSource:
    """A front end without training, as a baseline: one layer; methods as of `EncoderSource`.

    A window's vector is the mean and the standard deviation over time: a mean alone would hide how
    much a spectrum varies.
    """

    standardise = True
    precision = "fp32"

    def __init__(self, name: str):
        self._front_end = features.front_end(name)
        self.name = self.path = name
        self.layer_names: tuple[str, ...] = (name,)
        self.frame_dimension = self._front_end.dimension
        self.dimension = 2 * self.frame_dimension
        self.grid = self._front_end.grid
        settings = f"{name} {self.grid} {self.frame_dimension} mean+deviation"
        self.fingerprint = hashlib.sha256(settings.encode()).hexdigest()

    def clip_features(self, waveforms: np.ndarray) -> np.ndarray:
        parts = [np.concatenate([f.mean(axis=0), f.std(axis=0)]) for f in self._frames(waveforms)]
        return np.stack(parts).astype(np.float32)[:, None]

    def frame_features(self, waveforms: np.ndarray, num_frames: int) -> np.ndarray:
        frames = map(torch.from_numpy, self._frames(waveforms))
        resampled = [to_frame_rate(part, self.grid, num_frames) for part in frames]
        return _halves(torch.stack(resampled)[:, :, None])

    def _frames(self, waveforms: np.ndarray) -> Sequence[np.ndarray]:
        frames = [self._front_end.features(waveform) for waveform in waveforms]
        if not len(frames[0]):
            raise InputError(f"{waveforms.shape[1]} samples are too few for {self.name}")
        return frames


FeatureSource = EncoderSource | FrontEndSource


def _halves(frames: Tensor) -> np.ndarray:
    """Round to half precision before the copy from the GPU, which then takes half of the bytes."""
    return frames.half().clamp_(-_LARGEST_HALF, _LARGEST_HALF).cpu().numpy()
