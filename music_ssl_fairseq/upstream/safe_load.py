"""Load a torch file without executing anything in it."""

import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from music_ssl_fairseq import compat
from music_ssl_fairseq.errors import InputError
from music_ssl_fairseq.runtime.unpickling import (
    AGAIN,
    check_form,
    one_line_refusals,
    utf8_name,
    with_another_checkpoint,
)


def safe_load(path: Path) -> Any:
    """Load what `torch.save` of any version wrote: tensors and plain settings, nothing else.

    Tensors of newer files are memory-mapped, so that an optimizer's state costs nothing. All else
    is compared with the checksums in the file, which torch does not look at.

    Raises InputError if there is no such file, it is no checkpoint, it is damaged, or it asks for
    anything that could run code.
    """
    compat.check_unpickler()
    zipped = check_form(path)
    with (
        one_line_refusals(path),
        torch.serialization.safe_globals(_plain_data()),
        utf8_name(path) as name,
    ):
        loaded = torch.load(name, map_location="cpu", weights_only=True, mmap=zipped)
        if zipped:
            _compare_checksums(path, loaded)
        return loaded


def _compare_checksums(path: Path, loaded: Any) -> None:
    """Refuse a file of which bits have changed.

    torch can write files whose checksums mean nothing. In such a file none is right.
    """
    right = []
    with zipfile.ZipFile(path) as archive:
        records = archive.infolist()
        for record in records:
            stored = record.compress_type == zipfile.ZIP_STORED
            if stored and record.filename.endswith("/data.pkl"):
                try:
                    archive.read(record)
                    right.append(True)
                except zipfile.BadZipFile:
                    right.append(False)
    known = {(record.CRC, record.file_size) for record in records}
    storages = {s.data_ptr(): s for s in _storages(loaded) if s.nbytes()}
    right += [(_checksum(s), s.nbytes()) in known for s in storages.values()]
    if any(right) and not all(right):
        raise InputError(
            f"{path}: damaged: {right.count(False)} of its {len(right)} parts are not as they were "
            f"written{AGAIN}",
            with_another_checkpoint(path),
        )


def _checksum(storage: torch.UntypedStorage) -> int:
    whole = torch.empty(0, dtype=torch.uint8).set_(storage)
    return zlib.crc32(whole.numpy().data)


def _storages(loaded: Any) -> Iterator[torch.UntypedStorage]:
    """Yield the storages of all tensors except optimizers'."""
    if isinstance(loaded, torch.Tensor):
        yield loaded.untyped_storage()
    elif isinstance(loaded, dict):
        for name, value in loaded.items():
            if "optimizer" not in str(name):
                yield from _storages(value)
    elif isinstance(loaded, list | tuple):
        for value in loaded:
            yield from _storages(value)


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
