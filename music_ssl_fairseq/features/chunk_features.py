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

from music_ssl_fairseq import audio
from music_ssl_fairseq.errors import AudioError
from music_ssl_fairseq.features import FeatureSpec, FrontEnd, front_end
from music_ssl_fairseq.features.framewise import Chunk
from music_ssl_fairseq.frames import LENGTH_TOLERANCE, SAMPLE_RATE, samples_in
from music_ssl_fairseq.jobs.read_ahead import ReadAhead
from music_ssl_fairseq.runtime.machine import available_cpus

_CHUNKS_PER_GPU_BATCH = 8
_READ_AHEAD_CHUNKS = 16
_MAX_READERS = 16


class Track(NamedTuple):
    """One line of a manifest: the file, and its length in samples at 16 kHz."""

    path: str
    num_samples: int


class Request(NamedTuple):
    """Frames `[first, last)` of a track; or, if given, of these only `frames`, `[n]` ascending."""

    track: Track
    first: int
    last: int
    frames: np.ndarray | None = None

    def chosen_from(self, features: Any) -> Any:
        """Select the requested frames from the features of frames `[first, last)`."""
        return features if self.frames is None else features[self.frames - self.first]


@dataclass(frozen=True)
class FeatureWork:
    """Work of a worker pool (`jobs.pool.ordered`) on features of tracks, or of parts of tracks.

    Items are lists of parts. The result of each part is what `collect` returns, or the AudioError
    of a track that cannot be read, or has not the manifest's length.
    """

    features: FeatureSpec

    def requests(self, part: Any) -> list[Request]:
        """Return the features that a part needs."""
        raise NotImplementedError

    def collect(self, part: Any, features: Iterator[Any]) -> Any:
        """Return a part's result from the features of its requests, all of which must be taken.

        They are `[frames, dimension]` float32, arrays or, computed on a GPU, tensors there.
        """
        raise NotImplementedError

    def stream(self, items: Iterable[list[Any]]) -> Iterator[list[Any]]:
        """Yield the results of items, in order; on a GPU, the next ones are read meanwhile."""
        if self._on_gpu:
            yield from self._stream_on_gpu(items)
            return
        for item in items:
            yield [self._result(part, self._one_by_one(part)) for part in item]

    def __call__(self, item: list[Any]) -> list[Any]:
        """Return one item's results."""
        (results,) = self.stream([item])
        return results

    def on(self, device: str) -> "FeatureWork":
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

    def _result(self, part: Any, features: Iterator[Any]) -> Any:
        errors: list[AudioError] = []

        def without_errors() -> Iterator[Any]:
            for found in features:
                if isinstance(found, AudioError):
                    errors.append(found)
                else:
                    yield found

        result = self.collect(part, without_errors())
        return errors[0] if errors else result

    def _read(self, request: Request) -> tuple[Request, Chunk | AudioError]:
        try:
            check_length(request.track)
            return request, read_chunk(self.front, request.track, request.first, request.last)
        except AudioError as error:
            return request, error

    def _one_by_one(self, part: Any) -> Iterator[Any]:
        for request, chunk in map(self._read, self.requests(part)):
            if isinstance(chunk, AudioError):
                yield chunk
            else:
                yield request.chosen_from(self.front.features_of([chunk])[0])

    def _stream_on_gpu(self, items: Iterable[list[Any]]) -> Iterator[list[Any]]:
        arriving: queue.SimpleQueue[Any] = queue.SimpleQueue()  # items, and None at their end

        def requests() -> Iterator[Request]:
            try:
                for item in items:
                    found = [self.requests(part) for part in item]
                    arriving.put(list(zip(item, map(len, found), strict=True)))
                    yield from itertools.chain(*found)
            finally:
                arriving.put(None)

        threads = min(_MAX_READERS, available_cpus())
        with ReadAhead(self._read, requests(), threads, _READ_AHEAD_CHUNKS) as ahead:
            features = self._in_batches(ahead)
            for item in iter(arriving.get, None):
                yield [self._result(part, itertools.islice(features, n)) for part, n in item]
            next(features, None)  # raises what `items` raised

    def _in_batches(self, ahead: ReadAhead[Request, Any]) -> Iterator[Any]:
        """Yield features of requests as tensors on the GPU, computed in batches."""
        while read := ahead.take(_CHUNKS_PER_GPU_BATCH):
            chunks = [chunk for _, chunk in read if isinstance(chunk, Chunk)]
            tensors = iter(self.front.tensors_of(chunks))  # type: ignore[union-attr]
            for request, chunk in read:
                if isinstance(chunk, AudioError):
                    yield chunk
                else:
                    yield request.chosen_from(next(tensors))


def check_length(track: Track) -> None:
    """Compare a file's length with the manifest's.

    Raises AudioError if the file is missing, not audio, or differs by more than `LENGTH_TOLERANCE`.
    """
    length = audio.probe(track.path).length_at()
    if abs(length - track.num_samples) > samples_in(LENGTH_TOLERANCE):
        raise AudioError(
            track.path,
            f"lasts {length / SAMPLE_RATE:.2f} s, but its manifest says "
            f"{track.num_samples / SAMPLE_RATE:.2f} s; rebuild the manifest",
        )


def read_chunk(front_end: FrontEnd, track: Track, first: int, last: int) -> Chunk:
    """Decode the samples that frames `[first, last)` of a track need, and no more.

    A file that ends earlier than the manifest says (`check_length` bounds by how much) is padded
    with zeros, so that frames and manifest agree.
    """
    start, stop = front_end.samples_for(track.num_samples, first, last)
    waveform = audio.read(track.path, start, stop - start)
    if len(waveform) < stop - start:
        waveform = np.pad(waveform, (0, stop - start - len(waveform)))
    return Chunk(waveform, start, track.num_samples, first, last)
