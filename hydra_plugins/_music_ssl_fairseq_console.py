"""Print the lines of a training; the run's hydra_train.log has all that is logged.

Numbers go to standard output, one JSON object per line. On a terminal, a progress bar on standard
error takes their place, with one line per validation. Warnings, and what is logged with
`extra={"console": True}`, are lines on standard error. The rest is in the log alone: the
configuration, the model's layers, fairseq's notes, and warnings of hydra and torch.

`run_folder.yaml` of examples/ names `Console`.
"""

import json
import logging
import sys
from logging.handlers import MemoryHandler
from typing import Any

_OF_NUMBERS = "progress_bar"  # fairseq's module that logs them
_OF_SWEEPS = ("hydra._internal.core_plugins", "hydra_plugins.hydra_")  # launchers: their runs
_HIDDEN = ("epoch", "update", "num_updates", "wall", "train_wall")
_MAX_NUMBERS = 2


class Console(logging.Handler):
    """Print the records of one training process."""

    def __init__(self, stream: Any = None):
        """`stream` is what hydra gives its own handler; it is not used."""
        super().__init__()
        self._bar: Any = None
        self._on_terminal = sys.stderr.isatty()

    def emit(self, record: logging.LogRecord) -> None:
        """Print a record, or leave it to the log."""
        try:
            text = record.getMessage()
            if record.module == _OF_NUMBERS and text.startswith('{"'):
                self._numbers(record.name, text)
            elif record.module == _OF_NUMBERS or getattr(record, "console", False):
                self._line(text)
            elif record.name.startswith(_OF_SWEEPS):
                self._line(text.strip())
            elif record.levelno >= logging.WARNING and record.name != "py.warnings":
                trace = f"\n{self.format(record)}" if record.exc_info else ""
                self._line(f"{record.levelname.lower()}: {text}{trace}")
        except Exception:
            self.handleError(record)

    def _numbers(self, kind: str, text: str) -> None:
        if not self._on_terminal:
            print(f'{{"log": "{kind}", {text[1:]}', flush=True)
            return
        found = json.loads(text)
        shown: dict[str, Any] = {}
        for name, value in found.items():
            if name not in _HIDDEN and value not in shown.values() and len(shown) < _MAX_NUMBERS:
                shown[name.removeprefix(f"{kind}_")] = value
        words = ", ".join(f"{name} {value}" for name, value in shown.items())
        if kind == "train_inner":
            if self._bar is not None:
                self._bar.set_postfix_str(words, refresh=False)
        elif kind != "train":
            self._line(f"{kind}, update {found.get(f'{kind}_num_updates', '?')}: {words}")

    def _line(self, text: str) -> None:
        write = print if self._bar is None else self._bar.write  # above the bar
        write(text, file=sys.stderr)

    def move(self, updates: int, total: int | None, name: str) -> None:
        """Show on a terminal how many updates are done, of how many if that is known."""
        if not self._on_terminal:
            return
        if self._bar is None:
            from tqdm import tqdm

            self._bar = tqdm(
                desc=name, total=total, initial=updates, unit="update", dynamic_ncols=True
            )
        self._bar.update(updates - self._bar.n)

    def end(self) -> None:
        """Remove the bar."""
        if self._bar is not None:
            self._bar.leave = False
            self._bar.close()
            self._bar = None

    def close(self) -> None:
        """Remove the bar, and the handler."""
        self.end()
        super().close()


_EARLY = MemoryHandler(capacity=sys.maxsize, flushLevel=sys.maxsize)
"""Keeps records until the run has a log."""


def keep_for_the_log() -> None:
    """Keep warnings, and what imports log, out of the terminal; `replay` writes them to the log.

    fairseq and hydra print some twenty lines of them before a training has a folder.
    """
    if not logging.getLogger().handlers:
        logging.getLogger().addHandler(_EARLY)
        logging.captureWarnings(True)


def replay() -> None:
    """Write the kept records to the log files of the root logger."""
    for handler in logging.getLogger().handlers:
        if isinstance(handler, logging.FileHandler):
            for record in _EARLY.buffer:
                if record.levelno >= logging.INFO:
                    handler.handle(record)
    _EARLY.buffer = []
