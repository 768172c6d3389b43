"""One job over blocks of tracks, each block saved as soon as it is complete."""

import shlex
import sys
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from tqdm import tqdm

from music_ssl_fairseq.errors import AudioError, InputError
from music_ssl_fairseq.frames import SAMPLE_RATE
from music_ssl_fairseq.jobs.checkpoint_dir import Block, CheckpointDir, Held
from music_ssl_fairseq.jobs.pool import WorkerPool, ordered
from music_ssl_fairseq.jobs.shards import cut_blocks
from music_ssl_fairseq.runtime.user_command import typed

_MAX_UNREADABLE = 20  # tracks after which the job stops


@dataclass
class BlockJob:
    """A job, and the tracks of a manifest that it is applied to."""

    name: str  # of its files in the checkpoint dir
    description: str  # beside its progress bar
    num_samples: np.ndarray  # `[tracks]` at 16 kHz
    item: Callable[[int], Any]  # what the work is given for a track
    # Identifies what a range of tracks is read from, if that is known; blocks made from anything
    # else are made again
    source: Callable[[range], str | None]
    skip_unreadable: bool = False  # count a track that cannot be read as one with an empty result
    blocks: list[range] = field(init=False)  # of tracks; they follow from `num_samples`
    errors: dict[int, AudioError] = field(default_factory=dict, init=False)  # of tracks
    _sources: dict[int, str] = field(default_factory=dict, init=False)

    def __post_init__(self):
        self.blocks = cut_blocks(self.num_samples)

    def run(
        self, checkpoint_dir: CheckpointDir, numbers: Sequence[int], work: Any, pool: WorkerPool
    ) -> None:
        """Do those blocks of `numbers` that are not in `checkpoint_dir` yet.

        Blocks that another process is doing are left to it, and waited for. `work` is applied to
        lists of items in the workers (`pool.ordered`). For each item it returns an array
        `[n, ...]`, or the AudioError of a track that cannot be read.

        Raises InputError naming tracks that cannot be read, unless `skip_unreadable`. All other
        blocks are kept.
        """
        # Those of other shards as well: one shard may be done before files are replaced.
        checkpoint_dir.remove_outdated(self.name, len(self.blocks), self._source)
        with self._bar(checkpoint_dir, numbers) as bar:
            busy = self._run(checkpoint_dir, numbers, work, pool, bar)
            while busy:
                with checkpoint_dir.locked(checkpoint_dir.block(self.name, busy[0]).stem):
                    pass
                busy = self._run(checkpoint_dir, busy, work, pool, bar)
        if self.errors and not self.skip_unreadable:
            raise self._unreadable()

    def _source(self, number: int) -> str:
        return self.source(self.blocks[number]) or ""

    def _bar(self, checkpoint_dir: CheckpointDir, numbers: Sequence[int]) -> tqdm:
        exist = [number for number in numbers if checkpoint_dir.block(self.name, number).exists()]
        return tqdm(
            desc=self.description,
            total=round(sum(map(self._seconds, numbers)), 1),
            initial=round(sum(map(self._seconds, exist)), 1),
            unit=" audio-s",
            unit_scale=True,
            disable=len(exist) == len(numbers),
        )

    def _seconds(self, number: int) -> float:
        block = self.blocks[number]
        return float(self.num_samples[block.start : block.stop].sum()) / SAMPLE_RATE

    def _run(
        self,
        checkpoint_dir: CheckpointDir,
        numbers: Sequence[int],
        work: Any,
        pool: WorkerPool,
        bar: tqdm,
    ) -> list[int]:
        """Do the blocks that no other process is doing; return the numbers of the others."""
        held: Held = deque()
        busy: list[int] = []
        claimed = checkpoint_dir.claim_blocks(self.name, numbers, held, busy)
        try:
            groups = (g for number in claimed for g in self._groups(number, pool.group_size))
            results: list[np.ndarray | AudioError] = []
            for found in ordered(work, groups, pool):
                number, release = held[0]
                block = self.blocks[number]
                first = block.start + len(results)
                samples = self.num_samples[first : first + len(found)].sum()
                # Rounded as the total is; tqdm warns of a sum beyond it.
                bar.n = min(round(bar.n + float(samples) / SAMPLE_RATE, 1), bar.total)
                bar.update(0)
                results += found
                if len(results) == len(block):
                    self._save(checkpoint_dir, number, results)
                    held.popleft()
                    release()
                    results = []
        finally:
            for _, release in held:
                release()
        return busy

    def _groups(self, number: int, size: int) -> Iterator[list[Any]]:
        block = self.blocks[number]
        # Before it is read: a file replaced meanwhile must not pass for the one that was read.
        self._sources[number] = self._source(number)
        for start in range(block.start, block.stop, size):
            yield [self.item(i) for i in range(start, min(start + size, block.stop))]

    def _save(
        self, checkpoint_dir: CheckpointDir, number: int, results: Sequence[np.ndarray | AudioError]
    ) -> None:
        errors = {i: e for i, e in enumerate(results) if isinstance(e, AudioError)}
        for place, error in errors.items():
            tqdm.write(f"warning: {error}", file=sys.stderr)
            self.errors[self.blocks[number][place]] = error
        if not errors or self.skip_unreadable:
            arrays = [a for a in results if not isinstance(a, AudioError)]
            # Empty arrays may be of another shape, and are no part of the values.
            values = [a for a in arrays if len(a)] or arrays[:1] or [np.zeros(0)]
            lengths = [0 if isinstance(a, AudioError) else len(a) for a in results]
            places = np.array(list(errors), np.int64)
            source = np.array(self._sources.pop(number))
            block = Block(np.concatenate(values), np.array(lengths, np.int64), places, source)
            checkpoint_dir.save_block(self.name, number, block)
        elif len(self.errors) >= _MAX_UNREADABLE:
            raise self._unreadable()

    def _unreadable(self) -> InputError:
        others = f" (and {len(self.errors) - 1} more, see above)" if len(self.errors) > 1 else ""
        first = self.errors[min(self.errors)]
        if 1 < len(self.errors) == len(self.num_samples):
            return InputError(f"{first}{others}: not one track can be read")
        return InputError(
            f"{first}{others}; all else is kept: repair it and run the same command. With "
            "--skip-unreadable such a track gets an empty line, and training leaves it out",
            shlex.join([*typed(), "--skip-unreadable"]),
        )
