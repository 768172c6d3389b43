"""Features of many chunks of audio, one after the other, on the CPU or on a GPU.

A GPU computes faster than one thread decodes. There, threads read ahead, and the chunks that they
have read go through the model together. The values do not depend on what shares a batch.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import islice
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


class _Start(NamedTuple):
    """An item, and how many requests of it follow."""

    item: Any
    requests: int


class _Entry(NamedTuple):
    """A request with the audio that it needs; `start` if it is the first of an item."""

    start: _Start | None
    request: Request | None
    chunk: Chunk | AudioError | None


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
                entries = (self._read(_Entry(None, each, None)) for each in self.requests(item))
                yield self.collect(item, map(self._compute, entries))
            return
        threads = min(_MAX_READERS, available_cpus())
        with ReadAhead(self._read, self._entries(items), threads, _READ_AHEAD_CHUNKS) as ahead:
            events = self._events(ahead)
            for start in events:
                yield self.collect(start.item, islice(events, start.requests))

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

    def _entries(self, items: Iterable[Any]) -> Iterator[_Entry]:
        for item in items:
            requests = self.requests(item)
            start = _Start(item, len(requests))
            yield _Entry(start, requests[0] if requests else None, None)
            yield from (_Entry(None, request, None) for request in requests[1:])

    def _read(self, entry: _Entry) -> _Entry:
        request = entry.request
        if request is None:
            return entry
        try:
            check_length(request.track)
            chunk = read_chunk(self.front, request.track, request.first, request.last)
        except AudioError as error:
            return entry._replace(chunk=error)
        return entry._replace(chunk=chunk)

    def _compute(self, entry: _Entry) -> Any:
        request, chunk = entry.request, entry.chunk
        if request is None or not isinstance(chunk, Chunk):
            return chunk
        if request.frames is None:
            return self.front.features_of([chunk])[0]
        return self.front.features_at(chunk, request.frames)

    def _events(self, ahead: "ReadAhead[_Entry, _Entry]") -> Iterator[Any]:
        """Yield each item's `_Start`, and after it the features of its requests."""
        while entries := ahead.take(_CHUNKS_PER_GPU_BATCH):
            chunks = [entry.chunk for entry in entries if isinstance(entry.chunk, Chunk)]
            tensors = iter(self.front.tensors_of(chunks))  # type: ignore[union-attr]
            for start, request, chunk in entries:
                if start is not None:
                    yield start
                if request is None:
                    continue
                if isinstance(chunk, AudioError):
                    yield chunk
                    continue
                whole = next(tensors)
                yield whole if request.frames is None else whole[request.frames - request.first]
