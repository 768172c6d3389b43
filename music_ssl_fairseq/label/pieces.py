"""Features of many pieces of audio, one after the other, on the CPU or on a GPU.

A GPU computes faster than one thread decodes, so there threads read ahead, and what they have read
goes through the model together. The values do not depend on what shares a batch.
"""

from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import islice
from typing import TYPE_CHECKING, Any, NamedTuple

from music_ssl_fairseq.cpus import available_cpus
from music_ssl_fairseq.errors import AudioError
from music_ssl_fairseq.features import Features, front_end
from music_ssl_fairseq.features.framewise import Piece
from music_ssl_fairseq.features.track import Track, check_length, read_piece

if TYPE_CHECKING:
    from typing_extensions import Self  # typing's own needs Python 3.11

_TOGETHER = 8  # pieces that a GPU is given at once
_MAX_READERS = 16


class Request(NamedTuple):
    """Frames `[first, last)` of a track."""

    track: Track
    first: int
    last: int


class PieceFeatures:
    """What computes the features of requests, in their order.

    Attributes:
        front: the front end.
    """

    def __init__(self, features: Features):
        self.front = front_end(features)
        self._on_gpu = features.device != "cpu"

    def __call__(self, requests: Iterable[Request]) -> Iterator[Any]:
        """`[last - first, dimension]` float32 of each: an array, on a GPU a tensor there.

        A track that cannot be read, or has not the manifest's length, gives its AudioError.
        """
        if self._on_gpu:
            yield from self._read_ahead(requests)
            return
        for request in requests:
            read = self._read(request)
            yield read if isinstance(read, AudioError) else self.front.features_of([read])[0]

    def _read(self, request: Request) -> Piece | AudioError:
        try:
            check_length(request.track)
            return read_piece(self.front, *request)
        except AudioError as error:
            return error

    def _read_ahead(self, requests: Iterable[Request]) -> Iterator[Any]:
        waiting = iter(requests)
        pending: deque[Future[Piece | AudioError]] = deque()
        with ThreadPoolExecutor(min(_MAX_READERS, available_cpus())) as pool:
            while True:
                wanted = 2 * _TOGETHER - len(pending)
                pending.extend(pool.submit(self._read, item) for item in islice(waiting, wanted))
                if not pending:
                    return
                together = [pending.popleft().result() for _ in range(min(_TOGETHER, len(pending)))]
                yield from self._compute(together)

    def _compute(self, read: list[Piece | AudioError]) -> Iterator[Any]:
        pieces = [piece for piece in read if not isinstance(piece, AudioError)]
        tensors = iter(self.front.tensors_of(pieces))  # type: ignore[attr-defined]
        for piece in read:
            yield piece if isinstance(piece, AudioError) else next(tensors)


@dataclass(frozen=True)
class FeatureJob:
    """What the jobs of workers (`parallel.ordered`) that compute features have in common."""

    features: Features

    def on(self, device: str) -> "Self":
        """The same job, on a GPU of its own."""
        return replace(self, features=replace(self.features, device=device))

    @property
    def modules(self) -> list[str]:
        """What a worker imports for its front end."""
        return self.features.modules

    @cached_property
    def _pieces(self) -> PieceFeatures:
        return PieceFeatures(self.features)
