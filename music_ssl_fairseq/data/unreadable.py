"""Count the tracks that cannot be read during training, and name each once."""

import logging
import shlex
from dataclasses import dataclass
from pathlib import Path

import torch

from music_ssl_fairseq.errors import AudioError, InputError

logger = logging.getLogger(__name__)


@dataclass
class UnreadableTracks:
    """Flags per track in shared memory, for all data-loading workers."""

    num_tracks: int  # of the manifest
    num_used: int  # that crops are taken from
    max_share: float  # unreadable share of those, in [0, 1], beyond which training ends
    manifests: Path  # the manifest's folder, for the error message

    def __post_init__(self) -> None:
        self._flags = torch.zeros(self.num_tracks, dtype=torch.bool).share_memory_()

    def __contains__(self, track: int) -> bool:
        return bool(self._flags[track])

    def __len__(self) -> int:
        return int(self._flags.sum())

    def add(self, track: int, error: AudioError) -> None:
        """Flag a track, and warn if it was not flagged already.

        Raises InputError if there are too many.
        """
        if track in self:
            return
        self._flags[track] = True
        so_far = f"{len(self)} of {self.num_used} tracks"
        if len(self) > self.max_share * self.num_used:
            raise InputError(
                f"{so_far} cannot be read, more than max_unreadable={self.max_share:g} allows; "
                f"the last one is {error}. All are listed by",
                f"python -m manifests_tools check {shlex.quote(str(self.manifests))}",
            )
        logger.warning("%s; using other crops instead (%s so far)", error, so_far)
