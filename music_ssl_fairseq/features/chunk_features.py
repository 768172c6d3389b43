"""Features of many chunks of audio, one after the other, on the CPU or on a GPU.

A GPU computes faster than one thread decodes. There, threads read ahead, and the chunks that they
have read go through the model together. The values do not depend on what shares a batch.
"""

import itertools
import queue
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np

from music_ssl_fairseq.errors import AudioError
from music_ssl_fairseq.features import FeatureSpec, FrontEnd, front_end
from music_ssl_fairseq.features.framewise import Chunk
from music_ssl_fairseq.features.track import Track, check_length, read_chunk
from music_ssl_fairseq.jobs.read_ahead import ReadAhead
from music_ssl_fairseq.runtime.cpus import available_cpus

_CHUNKS_PER_GPU_BATCH = 8
_READ_AHEAD_CHUNKS = 16
_MAX_READERS = 16


class Request(NamedTuple):
    """Frames `[first, last)` of a track; or, if given, of these only `frames`, `[n]` ascending."""

    track: Track
    first: int
    last: int
    frames: np.ndarray | None = None


@dataclass(frozen=True)
class FeatureJob:
    """A job of workers (`jobs.pool.ordered`) that computes features of items."""

    features: FeatureSpec

    def requests(self, item: Any) -> list[Request]:
        """Return the features that an item needs."""
        raise NotImplementedError

    def collect(self, item: Any, features: Iterator[Any]) -> Any:
        """Return an item's result.

        Args:
            features: for each of its requests `[frames, dimension]` float32, an array or, computed
                on a GPU, a tensor there; the AudioError of a track that cannot be read, or has not
                the manifest's length. All of them have to be taken.
        """
        raise NotImplementedError

    def stream(self, items: Iterable[Any]) -> Iterator[Any]:
        """Yield the results of items, in order; on a GPU, the next ones are read meanwhile."""
        if not self._on_gpu:
            for item in items:
                read = map(self._read, self.requests(item))
                yield self.collect(item, itertools.starmap(self._compute, read))
            return
        arriving: queue.SimpleQueue[Any] = queue.SimpleQueue()  # items, and None at their end

        def requests() -> Iterator[Request]:
            try:
                for item in items:
                    found = self.requests(item)
                    arriving.put((item, len(found)))
                    yield from found
            finally:
                arriving.put(None)

        threads = min(_MAX_READERS, available_cpus())
        with ReadAhead(self._read, requests(), threads, _READ_AHEAD_CHUNKS) as ahead:
            features = self._compute_together(ahead)
            for item, count in iter(arriving.get, None):
                yield self.collect(item, itertools.islice(features, count))
            next(features, None)  # raises what `items` raised

    def __call__(self, item: Any) -> Any:
        """Return one item's result."""
        (result,) = self.stream([item])
        return result

    def on(self, device: str) -> "FeatureJob":
        """Return the same job for a GPU of its own."""
        return replace(self, features=replace(self.features, device=device))

    @property
    def _on_gpu(self) -> bool:
        return self.features.device != "cpu"

    @property
    def modules(self) -> list[str]:
        """Names of the modules that a worker imports for its front end."""
        return self.features.modules

    @cached_property
    def front(self) -> FrontEnd:
        """The front end of this process."""
        return front_end(self.features)

    def _read(self, request: Request) -> tuple[Request, Chunk | AudioError]:
        try:
            check_length(request.track)
            return request, read_chunk(self.front, request.track, request.first, request.last)
        except AudioError as error:
            return request, error

    def _compute(self, request: Request, chunk: Chunk | AudioError) -> Any:
        if isinstance(chunk, AudioError):
            return chunk
        if request.frames is None:
            return self.front.features_of([chunk])[0]
        return self.front.features_at(chunk, request.frames)

    def _compute_together(self, ahead: ReadAhead[Request, Any]) -> Iterator[Any]:
        """Yield the same in batches, as tensors on the GPU."""
        while read := ahead.take(_CHUNKS_PER_GPU_BATCH):
            chunks = [chunk for _, chunk in read if isinstance(chunk, Chunk)]
            tensors = iter(self.front.tensors_of(chunks))  # type: ignore[union-attr]
            for request, chunk in read:
                if isinstance(chunk, AudioError):
                    yield chunk
                    continue
                whole = next(tensors)
                yield whole if request.frames is None else whole[request.frames - request.first]
