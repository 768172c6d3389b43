"""Logs on a full disk: training continues without them, up to its next checkpoint."""

import errno
import functools
import logging
import sys
import threading
from collections.abc import Callable
from typing import Any

_NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


def patch_logs() -> None:
    """Report a log that cannot be written in one line, instead of a traceback per log line."""
    from fairseq.logging import progress_bar

    handler: Any = logging.FileHandler
    handler.handleError = _once(handler.handleError)
    threading.excepthook = _without_full_disks(threading.excepthook)
    bar = progress_bar.TensorboardProgressBarWrapper
    bar._log_to_tensorboard = _without_full_tensorboard(bar._log_to_tensorboard, progress_bar)


def _once(handle: Callable[..., None]) -> Callable[..., None]:
    @functools.wraps(handle)
    def handle_error(self: Any, record: logging.LogRecord) -> None:
        error = sys.exc_info()[1]
        if not _is_full_disk(error):
            handle(self, record)
        elif not getattr(self, "reported_full", False):
            self.reported_full = True
            _say(self.baseFilename, error)

    return handle_error


def _without_full_disks(hook: Callable[..., Any]) -> Callable[..., Any]:
    """Silence Tensorboard's thread, whose error is raised again at the next logged number."""

    @functools.wraps(hook)
    def excepthook(args: Any, /) -> Any:
        if not _is_full_disk(args.exc_value):
            hook(args)

    return excepthook


def _without_full_tensorboard(log: Callable[..., None], progress_bar: Any) -> Callable[..., None]:
    @functools.wraps(log)
    def log_to_tensorboard(self: Any, *args: Any, **kwargs: Any) -> None:
        if getattr(progress_bar, "tensorboard_is_full", False):
            return
        try:
            log(self, *args, **kwargs)
        except OSError as error:
            if not _is_full_disk(error):
                raise
            progress_bar.tensorboard_is_full = True
            progress_bar._tensorboard_writers.clear()  # closing them would fail too
            _say(self.tensorboard_logdir, error)

    return log_to_tensorboard


def _is_full_disk(error: BaseException | None) -> bool:
    return isinstance(error, OSError) and error.errno in _NO_ROOM


def _say(file: str, error: Any) -> None:
    print(f"warning: {file}: {error.strerror}; training continues without it", file=sys.stderr)
