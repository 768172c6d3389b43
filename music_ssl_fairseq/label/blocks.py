"""One job over the tracks of many blocks, each block saved as soon as it is whole."""

import sys
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import IO, Any, NamedTuple

import numpy as np
from tqdm import tqdm

from music_ssl_fairseq.errors import AudioError, InputError
from music_ssl_fairseq.frames import SAMPLE_RATE
from music_ssl_fairseq.label.parallel import Crew, ordered
from music_ssl_fairseq.label.work import Block, WorkFolder

_MAX_ERRORS = 20  # unreadable tracks after which looking for more is no use


@dataclass
class Stage:
    """What is to be done with the tracks of a manifest.

    Attributes:
        name: of its files in the work folder.
        description: beside its progress bar.
        blocks: of tracks, see `shards.cut_blocks`.
        num_samples: `[tracks]`, for the progress.
        item: what the job is given for a track.
        skip_unreadable: take a track that cannot be read for one that gives nothing.
    """

    name: str
    description: str
    blocks: Sequence[range]
    num_samples: np.ndarray
    item: Callable[[int], Any]
    skip_unreadable: bool = False
    errors: dict[int, AudioError] = field(default_factory=dict)

    def run(self, work: WorkFolder, numbers: Sequence[int], job: Any, crew: Crew) -> None:
        """Do those blocks of `numbers` that are not done yet.

        Blocks that another process is doing are left to it, and waited for.

        Raises:
            InputError: naming tracks that cannot be read, unless `skip_unreadable`. All other
                blocks are kept.
        """
        work.remove_damaged(self.name, numbers)
        with self._bar(work, numbers) as bar:
            busy = self._run(work, numbers, job, crew, bar)
            while busy:
                with work.locked(_lock_name(self.name, busy[0])):
                    pass
                busy = self._run(work, busy, job, crew, bar)
        if self.errors and not self.skip_unreadable:
            raise self._unreadable()

    def _bar(self, work: WorkFolder, numbers: Sequence[int]) -> tqdm:
        there = [number for number in numbers if work.block(self.name, number).exists()]
        return tqdm(
            desc=self.description,
            total=round(sum(map(self._seconds, numbers)), 1),
            initial=round(sum(map(self._seconds, there)), 1),
            unit=" audio-s",
            unit_scale=True,
        )

    def _seconds(self, number: int) -> float:
        block = self.blocks[number]
        return float(self.num_samples[block.start : block.stop].sum()) / SAMPLE_RATE

    def _run(
        self, work: WorkFolder, numbers: Sequence[int], job: Any, crew: Crew, bar: tqdm
    ) -> list[int]:
        """Do what nobody else is doing; the numbers of blocks that somebody is."""
        claims = _Claims(work, self.name, numbers)
        try:
            groups = (group for number in claims for group in self._groups(number, crew.together))
            found: list[np.ndarray | AudioError] = []
            for results in ordered(job, groups, crew):
                block = self.blocks[claims.first]
                first = block.start + len(found)
                samples = self.num_samples[first : first + len(results)].sum()
                bar.update(round(float(samples) / SAMPLE_RATE, 1))
                found += results
                if len(found) == len(block):
                    self._save(work, claims.first, found)
                    claims.release_first()
                    found = []
        finally:
            claims.release_all()
        return claims.busy

    def _groups(self, number: int, size: int) -> Iterator[list[Any]]:
        block = self.blocks[number]
        for start in range(block.start, block.stop, size):
            yield [self.item(i) for i in range(start, min(start + size, block.stop))]

    def _save(
        self, work: WorkFolder, number: int, found: Sequence[np.ndarray | AudioError]
    ) -> None:
        errors = {i: e for i, e in enumerate(found) if isinstance(e, AudioError)}
        for place, error in errors.items():
            tqdm.write(f"warning: {error}", file=sys.stderr)
            self.errors[self.blocks[number][place]] = error
        if not errors or self.skip_unreadable:
            arrays = [np.zeros(0) if isinstance(a, AudioError) else a for a in found]
            like = next((a for a in found if not isinstance(a, AudioError)), np.zeros(0))
            values = np.concatenate([a for a in arrays if len(a)] or [like[:0]])
            lengths = np.array([len(array) for array in arrays], np.int64)
            work.save_block(
                self.name, number, Block(values, lengths, np.array(list(errors), np.int64))
            )
        elif len(self.errors) >= _MAX_ERRORS:
            raise self._unreadable()

    def _unreadable(self) -> InputError:
        others = f" (and {len(self.errors) - 1} more, see above)" if len(self.errors) > 1 else ""
        first = self.errors[min(self.errors)]
        return InputError(
            f"{first}{others}; all else is kept: repair it and run the same command, or add "
            "--skip-unreadable, which gives such a track an empty line, and training leaves it out"
        )


class _Claim(NamedTuple):
    number: int
    handle: IO[bytes]


class _Claims:
    """Blocks that this process is doing: iterate to claim the next one that is free.

    Attributes:
        busy: those passed over because another process is doing them.
    """

    def __init__(self, work: WorkFolder, stage: str, numbers: Sequence[int]):
        self._work = work
        self._stage = stage
        self._numbers = numbers
        self._held: deque[_Claim] = deque()
        self.busy: list[int] = []

    def __iter__(self) -> Iterator[int]:
        for number in self._numbers:
            if self._work.block(self._stage, number).exists():
                continue
            handle = self._work.claim(_lock_name(self._stage, number))
            if handle is None:
                self.busy.append(number)
                continue
            self._held.append(_Claim(number, handle))
            # It may have been finished between looking and claiming.
            if self._work.block(self._stage, number).exists():
                self._release(self._held.pop())
                continue
            yield number

    @property
    def first(self) -> int:
        """The block whose results come next."""
        return self._held[0].number

    def release_first(self) -> None:
        self._release(self._held.popleft())

    def release_all(self) -> None:
        while self._held:
            self.release_first()

    def _release(self, claim: _Claim) -> None:
        self._work.release(_lock_name(self._stage, claim.number), claim.handle)


def _lock_name(stage: str, number: int) -> str:
    return f"{stage}-{number:05d}"
