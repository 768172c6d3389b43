"""Processes that read audio ahead of the model."""

from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from music_ssl_fairseq import audio
from music_ssl_fairseq.data.manifest import Manifest
from music_ssl_fairseq.errors import AudioError, InputError
from music_ssl_fairseq.extract.batches import Part
from music_ssl_fairseq.features.track import Track, check_length


class Load(NamedTuple):
    """Parts of tracks that were read.

    Attributes:
        parts: which ones.
        waveform: `[T]` float32, 16 kHz, all of them in a row; zeros where one could not be read.
        reasons: for each part, why it could not be read, or "".
    """

    parts: list[Part]
    waveform: Tensor
    reasons: list[str]


def read_loads(
    manifest: Manifest, loads: Iterable[list[Part]], workers: int, pin: bool
) -> Iterator[Load]:
    """Read what `Cut.loads` lists, in order, by `workers` processes that keep ahead (0: here).

    Args:
        pin: hand over in page-locked memory, from which a GPU copies while it computes.

    Raises:
        InputError: if a process was killed, as happens where there is little shared memory.
    """
    options: dict[str, Any] = {"prefetch_factor": 2} if workers else {}
    loader = DataLoader(
        _Reader(manifest),
        batch_size=None,
        sampler=loads,
        num_workers=workers,
        pin_memory=pin,
        collate_fn=_as_it_is,
        **options,
    )
    arriving = iter(loader)
    while True:
        try:
            parts, waveform, reasons = next(arriving)
        except StopIteration:
            return
        except RuntimeError as error:
            if "DataLoader worker" not in str(error):
                raise
            raise InputError(
                "a process that reads audio was killed: out of memory, or of shared memory "
                "(/dev/shm, of which containers have little); give fewer --workers, or 0"
            ) from None
        yield Load([Part(*part) for part in parts], waveform, reasons)


def _as_it_is(load: Any) -> Any:
    return load


class _Reader(Dataset):
    def __init__(self, manifest: Manifest):
        self.manifest = manifest

    def __getitem__(self, parts: list[Part]) -> tuple[list[tuple], Tensor, list[str]]:
        waveform = torch.zeros(sum(part.num_samples for part in parts))
        pieces = waveform.split([part.num_samples for part in parts])
        rows = zip(parts, pieces, strict=True)
        return [tuple(part) for part in parts], waveform, [self._read(*row) for row in rows]

    def _read(self, part: Part, samples: Tensor) -> str:
        """Fill `samples`; or the reason why not."""
        path = self.manifest.path(part.track)
        try:
            if part.section == 0:
                check_length(Track(path, int(self.manifest.num_samples[part.track])))
            found = audio.read(path, part.start, part.num_samples)
        except AudioError as error:
            return error.reason
        # What check_length lets pass, some milliseconds at the end, is silence.
        samples[: len(found)] = torch.from_numpy(found)
        return ""
