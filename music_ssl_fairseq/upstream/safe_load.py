"""Load a torch file without executing anything in it."""

from pathlib import Path
from typing import Any

import numpy as np
import torch

from music_ssl_fairseq import compat
from music_ssl_fairseq.runtime.unpickling import check_form, one_line_refusals


def safe_load(path: Path) -> Any:
    """Load what `torch.save` of any version wrote: tensors and plain settings, nothing else.

    Tensors of newer files are memory-mapped, so unused parts (an optimizer's state) cost nothing.

    Raises:
        InputError: if there is no such file, it is no checkpoint, it is damaged, or it asks for
            anything that could run code.
    """
    compat.check_unpickler()
    zipped = check_form(path)
    with one_line_refusals(path), torch.serialization.safe_globals(_plain_data()):
        return torch.load(path, map_location="cpu", weights_only=True, mmap=zipped)


def _plain_data() -> list[Any]:
    """Return the types in stock checkpoints that `compat` does not allow: numbers and settings."""
    from omegaconf import nodes

    compat.allow_fairseq_checkpoints()
    numbers = [type(np.dtype(kind)) for kind in ("f8", "f4", "f2", "i8", "i4", "?")]
    scalar = np.float64(0).__reduce__()[0]
    # None of compat's: these are refused again after the file is read.
    return [
        *(np.dtype, *numbers, scalar),
        (scalar, "numpy.core.multiarray.scalar"),  # its place before numpy 2
        *(nodes.StringNode, nodes.IntegerNode, nodes.FloatNode, nodes.BooleanNode),
    ]
