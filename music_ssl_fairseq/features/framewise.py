"""Front ends whose frames depend on a fixed number of frames around them, and several joined."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from music_ssl_fairseq.errors import InputError
from music_ssl_fairseq.frames import FrameGrid


class Chunk(NamedTuple):
    """Some frames of a track, with the audio that they need."""

    waveform: np.ndarray  # `[T]` float32 at 16 kHz, as the front end asked
    start: int  # place in the track of the waveform's first sample
    num_samples: int  # of the whole track
    first: int  # its first frame
    last: int  # the frame after its last one


class Framewise:
    """Features of which a frame depends on a fixed number of frames around it.

    Subclasses have these attributes, and compute `features` of a whole waveform.
    """

    grid: FrameGrid  # which samples each frame covers. Labels made from them have its rate
    dimension: int  # values per frame
    context: int  # frames on either side that a frame's values depend on
    chunk_frames = 6000  # of a long track to ask for at once: a minute, 1 to 2 MB
    min_chunk_frames = 1000  # ten seconds: seeking takes as long as reading fewer
    fingerprint: str | None = None  # of the checkpoint whose layer this is; None for others

    def features(self, waveform: np.ndarray) -> np.ndarray:
        """Map `[T]` float32, nominally in [-1, 1], 16 kHz, to `[frames, dimension]` float32."""
        raise NotImplementedError

    def samples_for(self, num_samples: int, first: int, last: int) -> tuple[int, int]:
        """Return the samples `[start, stop)` of a track that its frames `[first, last)` need."""
        start = max(0, first - self.context)
        stop = min(self.grid.num_frames(num_samples), last + self.context)
        begin = start * self.grid.hop
        return begin, begin + self.grid.num_samples(stop - start)

    def features_of(self, chunks: Sequence[Chunk]) -> list[np.ndarray]:
        """Return `[last - first, dimension]` float32 per chunk: those frames of the whole track.

        They do not depend on the chunk that they are asked for in, nor on other chunks.
        """
        found = []
        for chunk in chunks:
            offset = chunk.start // self.grid.hop
            whole = self.features(chunk.waveform)
            found.append(whole[chunk.first - offset : chunk.last - offset])
        return found


SCATTER = {"mfcc": 2500.0, "mfcc60": 2900.0, "logmel": 1200.0, "chroma": 0.94, "cqt": 18000.0}
"""Mean squared distance of a frame from the mean frame, over the soundtracks of three games
(`python -m tests.benchmarks.features`). Constants, and not measured on each corpus: a frame then
has the same features wherever it is, and nothing has to be computed before the first one."""


class SideBySide(Framewise):
    """Values of several front ends, given by name, side by side.

    Raises InputError if they have not the same frames.
    """

    def __init__(self, parts: Mapping[str, Framewise]):
        self.parts = dict(parts)
        grids = {front.grid for front in parts.values()}
        if len(grids) > 1:
            rates = ", ".join(f"{name} {front.grid.rate:g}" for name, front in parts.items())
            raise InputError(
                f"{'+'.join(parts)}: only features with the same frames can be joined, and these "
                f"have, per second: {rates}"
            )
        self.grid = grids.pop()
        self.dimension = sum(front.dimension for front in parts.values())
        self.context = max(front.context for front in parts.values())

    def features(self, waveform: np.ndarray) -> np.ndarray:
        """Map `[T]` float32 at 16 kHz to `[frames, dimension]` float32, parts in order."""
        return np.concatenate([self._values(name, waveform) for name in self.parts], axis=1)

    def _values(self, name: str, waveform: np.ndarray) -> np.ndarray:
        return self.parts[name].features(waveform)


class Concatenation(SideBySide):
    """The parts' values side by side, each divided by the root of its part's `SCATTER`.

    So each part's frames lie about 1 from their mean, and each contributes about equally to the
    distances that K-means minimises, however many values it has. Within a part nothing changes:
    MFCC alone and MFCC in a concatenation weigh their coefficients alike.
    """

    def _values(self, name: str, waveform: np.ndarray) -> np.ndarray:
        return super()._values(name, waveform) / np.float32(SCATTER[name] ** 0.5)
