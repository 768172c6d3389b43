"""Save with torch so that a full disk is an OSError."""

from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import torch


def save(what: Any, path: Path, by: Callable[[Any, Any], None] = torch.save) -> None:
    """Save through memory: on a full disk, torch's own writer ends the process.

    Raises:
        OSError: if the file cannot be written.
    """
    buffer = BytesIO()
    by(what, buffer)
    path.write_bytes(buffer.getbuffer())
