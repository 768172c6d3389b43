"""Signals: finish the update, save, and exit with a status on which schedulers resubmit the job."""

import multiprocessing
import multiprocessing.util
import os
import shlex
import signal
import sys
import threading
import time
from typing import Any

from hydra_plugins._music_ssl_fairseq_command import shell_line
from music_ssl_fairseq.runtime.machine import give_signals_a_stack

RESUBMIT = 75
"""Exit status of a training that a signal stopped and that can resume: EX_TEMPFAIL."""

RESUME_HINT = "run the same command to continue"

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2, signal.SIGHUP)

# `timeout` and srun may send one signal twice, on a busy machine with a pause between.
_REPEAT_SECONDS, _NEXT_SECONDS = 2.0, 0.2


class Interruption:
    """State of signals in this process."""

    def __init__(self) -> None:
        self.received: signal.Signals | None = None  # the first signal, or None
        self.agreed = False  # whether all processes of a training know of one's signal
        self.training = False  # whether an update must end first; else a signal exits at once
        self.saved = False  # whether the checkpoint is written, so that RESUBMIT is true
        self._handlers: dict[Any, Any] = {}
        self._pipe: tuple[int, int] | None = None

    def install(self) -> None:
        """Begin to handle signals, once, if this is the main thread, as Python requires."""
        if self._handlers or threading.current_thread() is not threading.main_thread():
            return
        give_signals_a_stack()
        for number in SIGNALS:
            # Ignored signals stay so, for nohup, except SIGINT, which shells ignore after `&`.
            if number == signal.SIGINT or signal.getsignal(number) is not signal.SIG_IGN:
                self._handlers[number] = signal.signal(number, self._receive)
        read, write = self._pipe = os.pipe()
        os.set_blocking(write, False)
        signal.set_wakeup_fd(write, warn_on_full_buffer=False)
        threading.Thread(target=self._exit_at_second_signal, args=(read,), daemon=True).start()

    def release(self) -> None:
        """Restore the previous handlers and reset all state."""
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
        """Print in one line what has happened and what to do."""
        name = self.received.name if self.received else "a signal to another process"
        command = shell_line(shlex.join([os.path.basename(sys.argv[0]), *sys.argv[1:]]))
        print(f"stopped by {name}: {state}; {RESUME_HINT}:", file=sys.stderr)
        print(command, file=sys.stderr, flush=True)

    def _exit_at_second_signal(self, pipe: int) -> None:
        """Exit at once at a second signal, even while the main thread is blocked."""
        first = began = None
        while data := os.read(pipe, 1):
            number, now = data[0], time.monotonic()
            if number not in SIGNALS:
                continue
            is_repeat = number == first != signal.SIGINT
            if began is None:
                first, began = number, now
            elif now - began > (_REPEAT_SECONDS if is_repeat else _NEXT_SECONDS):
                for child in multiprocessing.active_children():
                    child.kill()
                if self.saved:  # srun signals all processes once one has ended
                    os._exit(RESUBMIT)
                os.write(2, b"ended at once, by a second signal: nothing more is saved\n")
                os._exit(128 + number)
        os.close(pipe)

    def _leave_to_parent(self) -> None:
        """Block signals in a loading process, whose batches the parent needs to finish.

        Signals reach all processes of a terminal or a Slurm step. Only the parent may end this one.
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
"""State of signals in this process."""

multiprocessing.util.register_after_fork(interruption, Interruption._leave_to_parent)
