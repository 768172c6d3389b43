"""A server of the files in a folder, with ranges, on loopback."""

import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from urllib.parse import unquote


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def __init__(self, folder: Path, state: SimpleNamespace, *args):
        self._folder, self._state = folder, state
        super().__init__(*args)

    def do_HEAD(self):
        self._answer(body=False)

    def do_GET(self):
        self._answer(body=True)

    def _answer(self, body: bool) -> None:
        asked = self.headers.get("Range")
        self._state.requests.append((self.path, asked))
        file = self._folder / unquote(self.path).lstrip("/")
        if self._state.failures > 0:
            self._state.failures -= 1
            return self._head(self._state.failure, 0)
        if not file.is_file():
            return self._head(404, 0)
        size = file.stat().st_size
        start, stop = 0, size
        if body and self._state.silent > 0:
            self._state.silent -= 1
            threading.Event().wait(1)  # tests replace time.sleep
        if asked and self._state.ranges:
            first, last = re.fullmatch(r"bytes=(\d+)-(\d*)", asked).groups()
            start, stop = int(first), min(size, int(last) + 1 if last else size)
            if start >= size:
                return self._head(416, 0)
            if body and self._state.short > 0:  # a whole answer with less than was asked for
                self._state.short -= 1
                stop = (start + stop) // 2
            self._head(206, stop - start, f"bytes {start}-{stop - 1}/{size}")
        else:
            self._head(200, size)
        with file.open("rb") as handle:
            handle.seek(start)
            data = handle.read(stop - start)
        if body and self._state.cut:  # the connection breaks
            data, self._state.cut = data[: self._state.cut], 0
            self.close_connection = True
        if body:
            self.wfile.write(data)

    def _head(self, status: int, length: int, content_range: str = "") -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(length))
        if self._state.ranges:
            self.send_header("Accept-Ranges", "bytes")
        if content_range:
            self.send_header("Content-Range", content_range)
        self.end_headers()

    def log_message(self, *args):
        pass


@contextmanager
def running(handler: Callable[..., BaseHTTPRequestHandler]) -> Iterator[str]:
    """Answer requests on a free port of loopback; yields the URL."""
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()


@contextmanager
def serve(folder: Path) -> Iterator[SimpleNamespace]:
    """Serve a folder.

    Yields:
        `url`; `requests`, the paths and ranges asked for; and what may be set: `failures`, how many
        of the next requests fail, with the status `failure`; `cut`, bytes after which the next
        answer ends; `short` and `silent`, how many of the next answers hold half of what was asked
        for, or come after a second; `ranges`.
    """
    state = SimpleNamespace(
        requests=[], failures=0, failure=503, cut=0, short=0, silent=0, ranges=True
    )
    with running(partial(_Handler, folder, state)) as state.url:
        yield state
