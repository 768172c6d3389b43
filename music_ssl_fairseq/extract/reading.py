"""Processes that read audio ahead of the model."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from music_ssl_fairseq import audio
from music_ssl_fairseq.data.manifest import Manifest
from music_ssl_fairseq.errors import AudioError
from music_ssl_fairseq.extract.batches import Part
from music_ssl_fairseq.features.track import Track, check_length
from music_ssl_fairseq.jobs.pool import WorkerPool, ordered
from music_ssl_fairseq.jobs.read_ahead import ReadAhead

_PINNED_AHEAD = 2  # loads in page-locked memory before their use


class Load(NamedTuple):
    """Parts of tracks that were read."""

    parts: list[Part]  # which ones
    # `[T]` float32, 16 kHz, all of them in a row; zeros where one could not be read
    waveform: Tensor
    reasons: list[str]  # for each part, why it could not be read, or ""


def read_loads(
    manifest: Manifest, loads: Iterable[list[Part]], workers: int, device: torch.device
) -> Iterator[Load]:
    """Yield what `Cut.loads` lists, in order, read ahead by processes.

    Args:
        workers: processes; 0 to read in this one.
        device: of the model. For a GPU, loads are in page-locked memory, from which it copies while
            it computes.

    Raises:
        InputError: if a process was killed, as happens where there is little shared memory.
    """
    advice = "give fewer --workers, or 0 (containers have little shared memory, /dev/shm)"
    pool = WorkerPool(workers, fork=True, advice=advice)
    read = ordered(_Reader(manifest), loads, pool)
    if device.type != "cuda":
        yield from read
        return
    with ReadAhead(partial(_pinned, device), read, threads=1, depth=_PINNED_AHEAD) as pinned:
        yield from pinned


def _pinned(device: torch.device, load: Load) -> Load:
    with torch.cuda.device(device):
        return load._replace(waveform=load.waveform.pin_memory())


@dataclass(frozen=True)
class _Reader:
    manifest: Manifest

    def __call__(self, parts: list[Part]) -> Load:
        waveform = torch.zeros(sum(part.num_samples for part in parts))
        pieces = waveform.split([part.num_samples for part in parts])
        reasons = [self._read(*row) for row in zip(parts, pieces, strict=True)]
        return Load(parts, waveform, reasons)

    def _read(self, part: Part, samples: Tensor) -> str:
        """Fill `samples`; return "", or the reason why not."""
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
