"""Keep compiled GPU kernels where later runs find them.

By default torch's compiler keeps them in the temporary folder, which a Slurm job or a reboot
empties: each run would compile for most of a minute.
"""

import contextlib
import os
from pathlib import Path

_VARIABLES = {"TORCHINDUCTOR_CACHE_DIR": "inductor", "TRITON_CACHE_DIR": "triton"}


def keep_kernels() -> None:
    """Set the caches of torch's compiler and of Triton, before either is used.

    They lie in `music_ssl_fairseq/` of $XDG_CACHE_HOME or ~/.cache. What the user has set stays,
    and so do the defaults where that folder cannot be written. Several processes may share the
    caches: both write a file under a temporary name and rename it.
    """
    home = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    for variable, name in _VARIABLES.items():
        folder = Path(home, "music_ssl_fairseq", name)
        if variable not in os.environ and _is_writable(folder):
            os.environ[variable] = str(folder)


def _is_writable(folder: Path) -> bool:
    with contextlib.suppress(OSError):
        if folder.is_absolute():
            folder.mkdir(parents=True, exist_ok=True)
            return os.access(folder, os.W_OK | os.X_OK)
    return False
