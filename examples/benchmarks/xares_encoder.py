"""An encoder for X-ARES; the checkpoint comes from the environment.

    pip install -e '.[xares]'
    export MUSIC_SSL_CHECKPOINT=runs/music_hubert/short MUSIC_SSL_LAYER=6
    python -m xares.run examples/benchmarks/xares_encoder.py TASK.py ...

TASK.py are X-ARES's own, from its repository. Without MUSIC_SSL_LAYER frames are the mean of all
Transformer layers.
"""

import os

import torch
from torch import Tensor, nn

import music_ssl_fairseq
from music_ssl_fairseq.errors import InputError

_WHOLE_SECONDS = 45  # longer clips go through the model in windows


class MusicSslEncoder(nn.Module):
    """Frames of a layer, as X-ARES asks for them: `[B, T]` at `sampling_rate` to `[B, frames, D]`.

    X-ARES stores what it computes by the name of the class, so each checkpoint and layer has a
    class of its own.
    """

    def __init__(self) -> None:
        super().__init__()
        checkpoint = os.environ.get("MUSIC_SSL_CHECKPOINT")
        if not checkpoint:
            raise InputError("MUSIC_SSL_CHECKPOINT is not set: export MUSIC_SSL_CHECKPOINT=FILE")
        layer = os.environ.get("MUSIC_SSL_LAYER", "")
        if layer and not layer.removeprefix("-").isdecimal():
            raise InputError(f"MUSIC_SSL_LAYER={layer}: expected a number")
        self.model = music_ssl_fairseq.load(checkpoint)
        every = range(min(1, self.model.num_layers), self.model.num_layers + 1)
        self.layers = self.model.check_layers(int(layer) if layer else every)
        self.sampling_rate = self.model.sample_rate
        self.output_dim = self.model.dimension
        self.hop_size_in_ms = 1000 / self.model.frame_rate
        own = f"Music{self.model.fingerprint[:12]}Layer{layer or 'Mean'}Encoder"
        self.__class__ = type(own, (MusicSslEncoder,), {})

    def forward(self, audio: Tensor) -> Tensor:
        if audio.ndim == 1:
            audio = audio[None]
        if audio.size(1) <= _WHOLE_SECONDS * self.sampling_rate:
            hidden = self.model.layers(audio)
            return torch.stack([hidden[layer] for layer in self.layers]).mean(0)
        found = self.model.features(list(audio.cpu()), self.sampling_rate, self.layers)
        return torch.stack([one.layers.mean(0) for one in found]).to(audio.device)
