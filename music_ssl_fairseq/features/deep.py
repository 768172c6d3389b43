"""A layer of a pre-trained model: the features of HuBERT's second iteration."""

import numpy as np

from music_ssl_fairseq import upstream
from music_ssl_fairseq.frames import SAMPLE_RATE

_CONTEXT_SECONDS = 5.0


class Deep:
    """Hidden states of a layer of any checkpoint that `upstream.load` opens.

    Layers above are not computed. Attention looks at all of a window, so a part of a track with
    `context` around it has the whole's features nearly, and not to rounding.

    Args:
        checkpoint: file or folder.
        layer: 0 for the extractor's projected output, n for the n-th Transformer layer's.
        device: as torch names it.

    Raises:
        InputError: if the checkpoint cannot be read, or has no such layer.
    """

    def __init__(self, checkpoint: str, layer: int, device: str = "cpu"):
        self.upstream = upstream.load(checkpoint, device)
        (self.layer,) = self.upstream.check_layers([layer])
        self.fingerprint = self.upstream.fingerprint
        encoder = self.upstream.model.encoder
        encoder.layers = encoder.layers[:layer]
        self.grid = self.upstream.grid
        self.frame_rate = self.upstream.frame_rate
        self.dimension = self.upstream.dimension
        self.context = round(_CONTEXT_SECONDS * self.frame_rate)

    def features(self, waveform: np.ndarray) -> np.ndarray:
        """`[T]` float32, nominally in [-1, 1], 16 kHz, to `[frames, dimension]` float32."""
        if not self.grid.num_frames(len(waveform)):
            return np.zeros((0, self.dimension), np.float32)
        return self.upstream.features(waveform, SAMPLE_RATE, [self.layer])[0, 0].numpy()
