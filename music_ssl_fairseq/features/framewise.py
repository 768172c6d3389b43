"""What is asked of a front end, and what those share whose frames depend on little around them."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from music_ssl_fairseq.frames import FrameGrid


class Piece(NamedTuple):
    """Some frames of a track, and the audio that they need.

    Attributes:
        waveform: `[T]` float32 at 16 kHz, of the span that the front end has asked for.
        start: that span's first sample in the track.
        num_samples: of the whole track.
        first: the first frame wanted.
        last: the frame after the last one wanted.
    """

    waveform: np.ndarray
    start: int
    num_samples: int
    first: int
    last: int


class Framewise:
    """Features of which a frame depends on a fixed number of frames around it.

    Subclasses have these attributes, and compute `features` of a whole waveform.

    Attributes:
        grid: which samples each frame covers.
        frame_rate: frames a second.
        dimension: values a frame.
        context: frames on either side whose audio a frame's values depend on.
    """

    grid: FrameGrid
    frame_rate: float
    dimension: int
    context: int
    piece_frames = 6000  # a minute, 1 to 2 MB
    together = 1000  # ten seconds: much less, and seeking would count
    fingerprint: str | None = None

    def features(self, waveform: np.ndarray) -> np.ndarray:
        """`[T]` float32, nominally in [-1, 1], 16 kHz, to `[frames, dimension]` float32."""
        raise NotImplementedError

    def span(self, num_samples: int, first: int, last: int) -> tuple[int, int]:
        """The samples `[start, stop)` of a track that its frames `[first, last)` need."""
        start = max(0, first - self.context)
        stop = min(self.grid.num_frames(num_samples), last + self.context)
        begin = start * self.grid.hop
        return begin, begin + self.grid.num_samples(stop - start)

    def features_of(self, pieces: Sequence[Piece]) -> list[np.ndarray]:
        """`[last - first, dimension]` float32 of each piece: those frames of the whole track."""
        found = []
        for piece in pieces:
            offset = piece.start // self.grid.hop
            whole = self.features(piece.waveform)
            found.append(whole[piece.first - offset : piece.last - offset])
        return found
