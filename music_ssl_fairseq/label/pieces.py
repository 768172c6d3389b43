"""Features of many pieces of audio, one after the other, on the CPU or on a GPU.

A GPU computes faster than one thread decodes, so there threads read ahead, and what they have read
goes through the model together. The values do not depend on what shares a batch.
"""

import queue
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from music_ssl_fairseq.errors import AudioError
from music_ssl_fairseq.features import Features, front_end
from music_ssl_fairseq.features.framewise import Piece
from music_ssl_fairseq.features.track import Track, check_length, read_piece
from music_ssl_fairseq.runtime.cpus import available_cpus

if TYPE_CHECKING:
    from typing_extensions import Self  # typing's own needs Python 3.11

_TOGETHER = 8  # pieces that a GPU is given at once
_READ_AHEAD = 16  # pieces that are being read, or were, besides those
_MAX_READERS = 16


class Request(NamedTuple):
    """Frames `[first, last)` of a track; or, if given, of these only `frames`, `[n]` ascending."""

    track: Track
    first: int
    last: int
    frames: np.ndarray | None = None


Read = tuple[Piece | AudioError, Request]


class PieceFeatures:
    """What computes the features of requests, in their order.

    Attributes:
        front: the front end.
    """

    def __init__(self, features: Features):
        self.front = front_end(features)
        self._on_gpu = features.device != "cpu"

    def __call__(self, groups: Iterable[Sequence[Request]]) -> Iterator[Iterator[Any]]:
        """For each group of requests, in order, what comes of them.

        Args:
            groups: taken as they come, on a GPU ahead, by another thread.

        Yields:
            An iterator over `[frames, dimension]` float32 of each request: an array, on a GPU a
            tensor there; of a track that cannot be read, or has not the manifest's length, its
            AudioError. To be exhausted before the next is asked for.
        """
        if not self._on_gpu:
            for group in groups:
                yield (self._features(request) for request in group)
            return
        computed: deque[Any] = deque()
        with _Ahead(groups, self._read_with) as ahead:
            while (number := ahead.next_group()) is not None:
                yield self._from(ahead, computed, number)

    def _features(self, request: Request) -> Any:
        read = self._read(request)
        if isinstance(read, AudioError):
            return read
        if request.frames is None:
            return self.front.features_of([read])[0]
        return self.front.features_at(read, request.frames)

    def _read(self, request: Request) -> Piece | AudioError:
        try:
            check_length(request.track)
            return read_piece(self.front, request.track, request.first, request.last)
        except AudioError as error:
            return error

    def _read_with(self, request: Request) -> Read:
        return self._read(request), request

    def _from(self, ahead: "_Ahead", computed: deque[Any], number: int) -> Iterator[Any]:
        for _ in range(number):
            if not computed:
                computed.extend(self._compute(ahead.next_pieces()))
            yield computed.popleft()

    def _compute(self, read: list[Read]) -> Iterator[Any]:
        pieces = [piece for piece, _ in read if not isinstance(piece, AudioError)]
        tensors = iter(self.front.tensors_of(pieces))  # type: ignore[attr-defined]
        for piece, request in read:
            if isinstance(piece, AudioError):
                yield piece
                continue
            whole = next(tensors)
            yield whole if request.frames is None else whole[request.frames - request.first]


class _Ahead:
    """Groups of requests on their way: threads read their pieces, in order.

    Groups may be slow to come, and what was read must not wait for them. So a thread of its own
    takes them.
    """

    def __init__(self, groups: Iterable[Sequence[Request]], read: Callable[[Request], Read]):
        # In order: how many a group has, and then its pieces; None at the end, or what went wrong.
        self._arriving: queue.SimpleQueue[int | Future[Read] | BaseException | None]
        self._arriving = queue.SimpleQueue()
        self._groups: deque[int] = deque()
        self._pieces: deque[Future[Read]] = deque()
        self._ended = self._stopped = False
        self._room = threading.Semaphore(_READ_AHEAD)
        self._pool = ThreadPoolExecutor(min(_MAX_READERS, available_cpus()))
        threading.Thread(target=self._submit, args=(groups, read), daemon=True).start()

    def __enter__(self) -> "_Ahead":
        return self

    def __exit__(self, *error: Any) -> None:
        self._stopped = True
        self._room.release()
        self._pool.shutdown(cancel_futures=True)

    def _submit(self, groups: Iterable[Sequence[Request]], read: Callable[[Request], Read]) -> None:
        try:
            for group in groups:
                self._arriving.put(len(group))
                for request in group:
                    self._room.acquire()
                    if self._stopped:
                        return
                    self._arriving.put(self._pool.submit(read, request))
            self._arriving.put(None)
        except BaseException as error:  # it is raised where results are waited for
            self._arriving.put(error)

    def next_group(self) -> int | None:
        """How many requests the next group has; None if there is none."""
        while not self._groups and not self._ended:
            self._take(wait=True)
        return self._groups.popleft() if self._groups else None

    def next_pieces(self) -> list[Read]:
        """The next pieces: as many as go through a model together, if so many have arrived."""
        while not self._pieces:
            self._take(wait=True)
        while len(self._pieces) < _TOGETHER and self._take(wait=False):
            pass
        number = min(_TOGETHER, len(self._pieces))
        read = [self._pieces.popleft().result() for _ in range(number)]
        self._room.release(number)
        return read

    def _take(self, wait: bool) -> bool:
        """Whether something has arrived."""
        if self._ended:
            return False
        try:
            found = self._arriving.get(wait)
        except queue.Empty:
            return False
        if isinstance(found, BaseException):
            raise found
        if found is None:
            self._ended = True
        elif isinstance(found, int):
            self._groups.append(found)
        else:
            self._pieces.append(found)
        return True


@dataclass(frozen=True)
class FeatureJob:
    """What the jobs of workers (`parallel.ordered`) that compute features have in common."""

    features: Features

    def requests(self, item: Any) -> list[Request]:
        """What features an item needs."""
        raise NotImplementedError

    def collect(self, item: Any, features: Iterator[Any]) -> Any:
        """An item's result, from the features of its requests, all of which are taken."""
        raise NotImplementedError

    def stream(self, items: Iterable[Any]) -> Iterator[Any]:
        """Results of items, in order; on a GPU the next ones are read meanwhile."""
        taken: deque[Any] = deque()

        def groups() -> Iterator[list[Request]]:
            for item in items:
                taken.append(item)
                yield self.requests(item)

        for features in self._pieces(groups()):
            yield self.collect(taken.popleft(), features)

    def __call__(self, item: Any) -> Any:
        """An item's result."""
        (result,) = self.stream([item])
        return result

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
