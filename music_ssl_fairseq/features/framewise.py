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


_SPARSE = 0.7  # of a piece's frames: from more on, to compute all of them is no slower


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

    def features_at(self, piece: Piece, frames: np.ndarray) -> np.ndarray:
        """`[n, dimension]` float32 of some frames of a piece alone, `[n]` int64 and ascending.

        To rounding, what `features_of` says of them. Where they are far apart, only what each
        depends on is computed.
        """
        grid, context = self.grid, self.context
        size = grid.num_samples(2 * context + 1)  # samples that a frame depends on
        apart = -(-size // grid.hop)  # frames from one such span to the next, put in a row
        if len(frames) * apart > _SPARSE * (piece.last - piece.first):
            return self.features_of([piece])[0][frames - piece.first]
        found = np.empty((len(frames), self.dimension), np.float32)
        last = grid.num_frames(piece.num_samples) - 1 - context
        inside = (frames >= context) & (frames <= last)
        for i in np.flatnonzero(~inside):  # where the track begins or ends
            found[i] = self.features_of([self._part(piece, int(frames[i]))])[0][0]
        starts = (frames[inside] - context) * grid.hop - piece.start
        spans = np.zeros((len(starts), apart * grid.hop), np.float32)
        spans[:, :size] = piece.waveform[starts[:, None] + np.arange(size)]
        found[inside] = self.features(spans.reshape(-1))[context::apart][: len(starts)]
        return found

    def _part(self, piece: Piece, frame: int) -> Piece:
        start, stop = self.span(piece.num_samples, frame, frame + 1)
        waveform = piece.waveform[start - piece.start : stop - piece.start]
        return Piece(waveform, start, piece.num_samples, frame, frame + 1)
