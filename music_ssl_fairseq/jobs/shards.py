"""One run shared by several processes: which blocks of tracks each does.

The cut into blocks depends on the tracks alone, so that results are the same, and a killed run
resumes, whatever the number of shards.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from music_ssl_fairseq.errors import InputError
from music_ssl_fairseq.frames import SAMPLE_RATE

_BLOCK_SECONDS = 300  # of audio that a killed process loses at most, if no track is longer
_MAX_BLOCKS = 4000  # files a folder is to hold at most; blocks are longer in a larger corpus


@dataclass(frozen=True)
class Shard:
    """Shard `index` of `count`, counted from 0."""

    index: int = 0
    count: int = 1

    def __post_init__(self):
        if not 0 <= self.index < self.count:
            raise InputError(
                f"--shard {self.index} of --num-shards {self.count}: shards count from 0 to "
                f"{self.count - 1}"
            )

    def __str__(self) -> str:
        return f"shard {self.index} of {self.count}"


def choose_shard(index: int | None, count: int | None, environment: Mapping[str, str]) -> Shard:
    """Return the shard of the command line or of a Slurm array; without either, all the work.

    Raises InputError if only one of both is given, or the array's numbers have gaps.

    Args:
        index: `--shard`, given together with `count` or not at all.
        count: `--num-shards`.
        environment: of the process. An array job's tasks are the shards (`sbatch --array=0-15`).
    """
    if (index is None) != (count is None):
        raise InputError("--num-shards and --shard belong together: give both or neither")
    if index is not None and count is not None:
        return Shard(index, count)
    if "SLURM_ARRAY_TASK_ID" not in environment or "SLURM_ARRAY_TASK_COUNT" not in environment:
        return Shard()
    task, tasks, first, step = (
        int(environment.get(f"SLURM_ARRAY_TASK_{name}", default))
        for name, default in (("ID", "0"), ("COUNT", "1"), ("MIN", "0"), ("STEP", "1"))
    )
    place, rest = divmod(task - first, step)
    if rest or not 0 <= place < tasks:
        raise InputError(
            f"SLURM_ARRAY_TASK_ID {task} is not one of {tasks} from {first} in steps of {step}: "
            "use an array without gaps, such as --array=0-15, or give --num-shards and --shard"
        )
    return Shard(place, tasks)


def cut_blocks(num_samples: np.ndarray) -> list[range]:
    """Cut `[tracks]` lengths at 16 kHz into blocks of one file each."""
    total = int(num_samples.sum())
    return cut(num_samples, max(_BLOCK_SECONDS * SAMPLE_RATE, -(-total // _MAX_BLOCKS)))


def cut(num_samples: np.ndarray, size: int) -> list[range]:
    """Cut `[tracks]` lengths into ranges of tracks, in order, of about `size` samples each."""
    begins = np.cumsum(num_samples) - num_samples
    firsts = np.flatnonzero(np.diff(begins // size, prepend=-1)).tolist()
    return [range(*edges) for edges in pairwise([*firsts, len(num_samples)])]


def in_own_order(num_blocks: int, shard: Shard) -> list[int]:
    """Return all blocks, each shard starting at another one, so that shards meet late."""
    first = num_blocks * shard.index // shard.count
    return [*range(first, num_blocks), *range(first)]
