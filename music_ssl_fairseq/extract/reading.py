"""Processes that read audio ahead of the model."""

from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from music_ssl_fairseq import audio
from music_ssl_fairseq.data.manifest import Manifest
from music_ssl_fairseq.errors import AudioError
from music_ssl_fairseq.extract.batches import Piece
from music_ssl_fairseq.features.track import Track, check_length


class Batch(NamedTuple):
    """Windows that were read.

    Attributes:
        pieces: which ones.
        waveform: `[B, T]` float32, 16 kHz; zeros where a piece could not be read.
        reasons: for each piece, why it could not be read, or "".
    """

    pieces: list[Piece]
    waveform: Tensor
    reasons: list[str]


def read_batches(
    manifest: Manifest, batches: Iterable[list[Piece]], workers: int, pin: bool
) -> Iterator[Batch]:
    """Read batches, in order, by `workers` processes that keep ahead (0: in this one).

    Args:
        pin: read into page-locked memory, from which a GPU copies while it computes.
    """
    options: dict[str, Any] = {"prefetch_factor": 3} if workers else {}
    loader = DataLoader(
        _Reader(manifest),
        batch_size=None,
        sampler=batches,
        num_workers=workers,
        pin_memory=pin,
        collate_fn=_as_it_is,
        **options,
    )
    for pieces, waveform, reasons in loader:
        yield Batch([Piece(*piece) for piece in pieces], waveform, reasons)


def _as_it_is(batch: Any) -> Any:
    return batch


class _Reader(Dataset):
    def __init__(self, manifest: Manifest):
        self.manifest = manifest

    def __getitem__(self, pieces: list[Piece]) -> tuple[list[tuple], Tensor, list[str]]:
        waveform = torch.zeros(len(pieces), pieces[0].num_samples)
        rows = zip(pieces, waveform.numpy(), strict=True)
        return [tuple(p) for p in pieces], waveform, [self._read(p, row) for p, row in rows]

    def _read(self, piece: Piece, row: np.ndarray) -> str:
        """Fill the row; or the reason why not."""
        track = self.manifest.path(piece.track)
        try:
            if piece.number == 0:
                check_length(Track(track, int(self.manifest.num_samples[piece.track])))
            samples = audio.read(track, piece.start, piece.num_samples)
        except AudioError as error:
            return error.reason
        # What check_length lets pass, a few milliseconds at the end, is silence.
        row[: len(samples)] = samples
        return ""
