"""Commands in processes of their own, which end together, and what they cost."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

Call = Callable[[Sequence[str], Path, dict[str, str]], int]
"""Runs a command with a log and an environment, and returns its exit status."""

_END_WITH_PARENT = (
    "import ctypes, os, sys; ctypes.CDLL(None).prctl(1, 15); os.execvp(sys.argv[1], sys.argv[1:])"
)
"""Asks Linux for SIGTERM when this program dies, also by SIGKILL, and becomes the command."""


class Processes:
    """Runs commands, until it is stopped."""

    def __init__(self) -> None:
        self._running: set[subprocess.Popen] = set()
        self._lock = threading.Lock()
        self._stopped = False

    def __call__(self, command: Sequence[str], log: Path, environment: dict[str, str]) -> int:
        """Run a command, append what it says to `log`, and return its exit status."""
        log.parent.mkdir(parents=True, exist_ok=True)
        if sys.platform == "linux":
            command = [sys.executable, "-c", _END_WITH_PARENT, *command]
        with log.open("ab") as file:
            with self._lock:
                if self._stopped:
                    return -signal.SIGTERM
                process = subprocess.Popen(
                    command,
                    stdout=file,
                    stderr=subprocess.STDOUT,
                    env={**os.environ, **environment},
                    process_group=0,  # a terminal's Ctrl-C reaches this program alone
                )
                self._running.add(process)
            status = process.wait()
        with self._lock:
            self._running.discard(process)
        return status

    def stop(self) -> None:
        """Ask all to end, and start no others; trainings write a checkpoint first."""
        with self._lock:
            self._stopped = True
            for process in self._running:
                process.send_signal(signal.SIGTERM)


class Shares:
    """Divides the seconds of each GPU among the trainings that run on it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._running: dict[str, list[list[float]]] = {}
        self._since: dict[str, float] = {}

    @contextmanager
    def of(self, gpu: str) -> Iterator[list[float]]:
        """Count while the block runs; the one number given is its share in seconds, at the end."""
        mine = [0.0]
        with self._lock:
            self._divide(gpu)
            self._running.setdefault(gpu, []).append(mine)
        try:
            yield mine
        finally:
            with self._lock:
                self._divide(gpu)
                self._running[gpu] = [x for x in self._running[gpu] if x is not mine]

    def _divide(self, gpu: str) -> None:
        now, running = time.monotonic(), self._running.get(gpu, [])
        for share in running:
            share[0] += (now - self._since[gpu]) / len(running)
        self._since[gpu] = now


def last_words(log: Path) -> str:
    """Return the last error of a log's end, or its last line that says something, and the log."""
    try:
        lines = log.read_text("utf-8", "replace").split("\n")
    except OSError:
        lines = []
    said = [line.strip() for line in lines if line.strip()][-20:]
    errors = [line for line in said if line.startswith("error: ")]
    return f"{(errors or said or ['it said nothing'])[-1][-300:]} ({log})"
