"""Read files within tar shards, of a folder or of a URL that fsspec knows: `SHARD.tar:OFFSET:SIZE`.

The name is fairseq's for a file within an uncompressed archive. Access is random: any part of any
file is read by its place, so that crops need no order, and no index but the manifest.
"""

import http
import io
import os
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any

from music_ssl_fairseq.errors import AudioError, InputError

_MEMBER = re.compile(r"(.+\.tar):(\d{1,15}):(\d{1,15})", re.DOTALL)
_BLOCK_BYTES = 1 << 16  # of one request to a server: three seconds of FLAC
_FIRST_BLOCKS = 2048  # kept, because each crop of a file begins with the file's header
_WAIT_SECONDS = (1, 2, 4, 8)  # before a server is asked again
_SILENT_SECONDS = 30  # of a server, until it is asked again


@dataclass(frozen=True)
class Member:
    """A file within a shard: its place in bytes."""

    shard: str
    offset: int
    size: int

    @property
    def name(self) -> str:
        return f"{self.shard}:{self.offset}:{self.size}"


def parse_member(name: str) -> Member | None:
    """Return the file that a name means; None if it means no part of a shard."""
    found = _MEMBER.fullmatch(name)
    return Member(found[1], int(found[2]), int(found[3])) if found else None


@contextmanager
def opened(member: Member) -> Iterator[io.RawIOBase]:
    """Open a member as a file that can seek.

    Raises:
        AudioError: if there is no such shard, or it ends before the member.
        InputError: if a server does not answer, asked five times.
    """
    with _source(member) as read:
        file = _MemberFile(member, read)
        try:
            yield file
        except AudioError:
            if file.error is None:  # else libsndfile saw its consequence
                raise
        if file.error is not None:
            raise file.error


@contextmanager
def _source(member: Member) -> Iterator[Callable[[int, int], bytes]]:
    """Give a function that reads the bytes `[start, stop)` of a member."""
    if "://" in member.shard:
        block = lru_cache(maxsize=None)(partial(_fetch_block, member))  # while it is open

        def read(start: int, stop: int) -> bytes:
            first, last = start // _BLOCK_BYTES, (stop - 1) // _BLOCK_BYTES
            parts = (block(n) if n else _first_block(member) for n in range(first, last + 1))
            return b"".join(parts)[start - first * _BLOCK_BYTES : stop - first * _BLOCK_BYTES]

        yield read
        return
    try:
        handle = os.open(member.shard, os.O_RDONLY)
    except OSError as error:
        raise AudioError(member.name, error.strerror or str(error)) from None
    try:
        yield lambda start, stop: os.pread(handle, stop - start, member.offset + start)
    finally:
        os.close(handle)


class _MemberFile(io.RawIOBase):
    """A part of a shard as a file; `error` keeps errors, which libsndfile's callbacks swallow."""

    def __init__(self, member: Member, read: Callable[[int, int], bytes]):
        self._member = member
        self._read = read
        self._position = 0
        self.error: BaseException | None = None

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._member.size}
        self._position = base[whence] + offset
        return self._position

    def tell(self) -> int:
        return self._position

    def readinto(self, buffer: Any) -> int:
        stop = min(self._position + len(buffer), self._member.size)
        if stop <= self._position or self.error is not None:
            return 0
        try:
            data = self._read(self._position, stop)
            if len(data) < stop - self._position:
                raise AudioError(self._member.name, "the shard ends before this file does")
        except BaseException as error:  # also the exit of a worker that is stopped
            self.error = error
            return 0
        buffer[: len(data)] = data
        self._position = stop
        return len(data)


def _fetch_block(member: Member, number: int) -> bytes:
    start = number * _BLOCK_BYTES
    stop = min(start + _BLOCK_BYTES, member.size)
    return _fetch(member, member.offset + start, member.offset + stop)


_first_block = lru_cache(_FIRST_BLOCKS)(partial(_fetch_block, number=0))


def _fetch(member: Member, start: int, stop: int) -> bytes:
    """Ask a server for the bytes `[start, stop)` of a shard, several times if it fails."""
    for wait in (*_WAIT_SECONDS, None):
        try:
            files = _connected(member.shard.partition("://")[0], os.getpid())
            place = files._strip_protocol(member.shard)
            data = files.cat_file(place, start, stop)
            if len(data) > stop - start:
                raise InputError(
                    f"{member.shard}: the server sends whole files instead of parts: it needs HTTP "
                    "range requests, which `python -m http.server` does not have"
                )
            if len(data) < stop - start and (files.size(place) or stop) >= stop:
                raise ConnectionError("the answer ended early")  # else the shard ends here
            return data
        except InputError:
            raise
        except FileNotFoundError:
            raise AudioError(member.name, "no such file") from None
        except ImportError as error:
            scheme = member.shard.partition("://")[0].replace("https", "http")
            raise InputError(
                f"{member.shard}: such URLs need a package ({error})",
                f"pip install 'fsspec[{scheme}]'",
            ) from None
        except Exception as error:
            if getattr(error, "status", None) == http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
                return b""  # the shard ends before
            if wait is None:
                raise InputError(
                    f"{member.shard}: bytes {start} to {stop} could not be read in "
                    f"{len(_WAIT_SECONDS) + 1} tries ({type(error).__name__}: {error})"
                ) from None
            time.sleep(wait)
    raise AssertionError


@lru_cache(maxsize=8)
def _connected(protocol: str, process: int) -> Any:
    """Connect once per process: a forked worker must not use its parent's connections."""
    import fsspec

    options: dict[str, Any] = {}
    if protocol in ("http", "https"):
        import aiohttp  # whose own limit is 300 s for an answer, also one that is on its way

        limits = {"sock_connect": _SILENT_SECONDS, "sock_read": _SILENT_SECONDS}
        options["client_kwargs"] = {"timeout": aiohttp.ClientTimeout(total=None, **limits)}
    return fsspec.filesystem(protocol, skip_instance_cache=True, **options)
