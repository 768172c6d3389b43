"""Signals: finish the update, save, and end with a status on which a scheduler starts it again."""

import multiprocessing
import multiprocessing.util
import os
import signal
import sys
import threading
import time
from typing import Any

from music_ssl_fairseq.runtime.signal_stack import give_signals_a_stack

RESUBMIT = 75
"""Exit status of a training that was stopped by a signal and can continue: EX_TEMPFAIL."""

SAY = "run the same command to continue"

SIGNALS = tuple(
    getattr(signal, name)
    for name in ("SIGINT", "SIGTERM", "SIGUSR1", "SIGUSR2", "SIGHUP")
    if hasattr(signal, name)
)

_ONE = 0.2  # seconds: `timeout` and srun may send one signal twice


class Interruption:
    """What signals have asked of this process.

    Attributes:
        received: the first signal, or None.
        agreed: whether this or another process of the training has received one, as all know.
        training: whether there is an update to finish. Before, the process ends at once.
        saved: whether nothing is left to do but to end, with RESUBMIT.
    """

    def __init__(self) -> None:
        self.received: signal.Signals | None = None
        self.agreed = False
        self.training = False
        self.saved = False
        self._handlers: dict[Any, Any] = {}
        self._pipe: tuple[int, int] | None = None

    def install(self) -> None:
        """Handle signals from now on, once, where Python allows it: in a main thread."""
        if self._handlers or threading.current_thread() is not threading.main_thread():
            return
        give_signals_a_stack()
        for number in SIGNALS:
            # nohup wants it ignored. An ignored SIGINT says only that a shell started us with `&`.
            if number == signal.SIGINT or signal.getsignal(number) is not signal.SIG_IGN:
                self._handlers[number] = signal.signal(number, self._receive)
        read, write = self._pipe = os.pipe()
        os.set_blocking(write, False)
        signal.set_wakeup_fd(write, warn_on_full_buffer=False)
        threading.Thread(target=self._watch, args=(read,), daemon=True).start()

    def release(self) -> None:
        """Give signals back to whoever had them, and forget them."""
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        if self._pipe:
            signal.set_wakeup_fd(-1)
            os.close(self._pipe[1])
        self.__init__()  # type: ignore[misc]

    def _receive(self, number: int, frame: Any) -> None:
        self.received = self.received or signal.Signals(number)
        if not self.training:
            self.say("before its first update")
            raise SystemExit(RESUBMIT)
        elif os.isatty(2):
            os.write(2, b"\nfinishing this update, and saving; once more to end at once\n")

    def say(self, state: str) -> None:
        """Say in one line what has happened, and what to do."""
        name = self.received.name if self.received else "a signal to another process"
        print(f"stopped by {name}: {state}; {SAY}", file=sys.stderr, flush=True)

    def _watch(self, pipe: int) -> None:
        """End at once at the second signal, also while Python is waiting for something else."""
        first = None
        while data := os.read(pipe, 1):
            now = time.monotonic()
            if data[0] not in SIGNALS:
                continue
            first = first or now
            if now - first > _ONE:
                for child in multiprocessing.active_children():
                    child.kill()
                if self.saved:  # srun tells the others to end once the first has
                    os._exit(RESUBMIT)
                os.write(2, b"ended at once, by a second signal: nothing more is saved\n")
                os._exit(128 + data[0])
        os.close(pipe)

    def _leave_to_parent(self) -> None:
        """In a loading process: leave signals to the parent, which needs its batches to finish.

        They come to all processes of a terminal or a Slurm step. Only the parent may end it.
        """
        if not self._handlers:
            return
        signal.set_wakeup_fd(-1)
        if hasattr(signal, "sigwaitinfo"):
            signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
            threading.Thread(target=_obey_parent, daemon=True).start()


def _obey_parent() -> None:
    while True:
        info = signal.sigwaitinfo(SIGNALS)
        if info.si_signo == signal.SIGTERM and info.si_pid == os.getppid():
            os._exit(0)


interruption = Interruption()
"""The one of this process."""

multiprocessing.util.register_after_fork(interruption, Interruption._leave_to_parent)
