"""Logs on a full disk: training continues without them, up to its next checkpoint."""

import errno
import functools
import logging
import sys
import threading
from collections.abc import Callable
from typing import Any

_FULL_DISK_ERRORS = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


def patch_logs() -> None:
    """Report a log that cannot be written in one line, instead of a traceback per log line."""
    from fairseq.logging import progress_bar

    handler: Any = logging.FileHandler
    handler.handleError = functools.partialmethod(_handle_error, handler.handleError)
    threading.excepthook = functools.partial(_excepthook, threading.excepthook)
    bar = progress_bar.TensorboardProgressBarWrapper
    bar._log_to_tensorboard = functools.partialmethod(_log_to_tensorboard, bar._log_to_tensorboard)


def _handle_error(handler: Any, handle: Callable[..., None], record: logging.LogRecord) -> None:
    error = sys.exc_info()[1]
    if not _is_full_disk(error):
        handle(handler, record)
    elif not getattr(handler, "reported_full", False):
        handler.reported_full = True
        _report(handler.baseFilename, error)


def _excepthook(hook: Callable[..., Any], args: Any) -> Any:
    """Silence Tensorboard's thread, whose error is raised again at the next logged number."""
    if not _is_full_disk(args.exc_value):
        hook(args)


def _log_to_tensorboard(bar: Any, log: Callable[..., None], *args: Any, **kwargs: Any) -> None:
    from fairseq.logging import progress_bar

    if getattr(progress_bar, "tensorboard_is_full", False):
        return
    try:
        log(bar, *args, **kwargs)
    except OSError as error:
        if not _is_full_disk(error):
            raise
        progress_bar.tensorboard_is_full = True
        progress_bar._tensorboard_writers.clear()  # closing them would fail too
        _report(bar.tensorboard_logdir, error)


def _is_full_disk(error: BaseException | None) -> bool:
    return isinstance(error, OSError) and error.errno in _FULL_DISK_ERRORS


def _report(file: str, error: Any) -> None:
    print(f"warning: {file}: {error.strerror}; training continues without it", file=sys.stderr)
